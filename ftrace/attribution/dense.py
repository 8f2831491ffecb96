"""Dense retrieval: cosines of sentence embeddings by any Hugging Face encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from ftrace.arguments import Name, Positive, checked
from ftrace.attribution.method import AttributionMethod
from ftrace.attribution.passes import Batch, Pass, Scorer, score_in_passes
from ftrace.attribution.task import Row, Task
from ftrace.attribution.vectors import Vectors, masked_mean, scorer_by_cosine
from ftrace.data import fill_in
from ftrace.scores import ScoreStore


@checked
@dataclass(frozen=True)
class Dense(AttributionMethod):
    """Dense retrieval: cosine of the embeddings of sentences with their answers filled in.

    Args:
        model: Folder or hub name of an encoder with its tokenizer; of an encoder-decoder, the encoder is taken.
        pooling: "mean" over the tokens without padding, or the "first" token's state.
        query_prefix: The prefix of queries that the model was trained with, such as "query: ".
        document_prefix: That of documents, such as "passage: ".
        max_length: Tokens of a sentence that are read, or fewer where the tokenizer knows of a smaller limit; what is
            longer is cut off with a warning.
    """

    name: ClassVar[Name] = "dense"

    model: Name
    pooling: Literal["mean", "first"] = "mean"
    query_prefix: str = ""
    document_prefix: str = ""
    max_length: Positive = 512

    def score(self, task: Task) -> ScoreStore:
        """Score the task's examples; the run's own model is not used."""
        tokenizer = _load(AutoTokenizer, self.model)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        of_queries = partial(self._tokens, tokenizer, self.query_prefix)
        batches = [of_queries(rows) for rows in _pieces(task.query_rows(), task.data.settings.query_batch_size)]
        passes = [Pass(0, len(task.queries), partial(self._begin, batches, len(tokenizer)))]
        return score_in_passes(self, task, passes, partial(self._tokens, tokenizer, self.document_prefix), {})

    def _begin(self, batches: Sequence[Batch], words: int, device: torch.device) -> Scorer:
        model = _load(AutoModel, self.model).eval().to(device)
        rows = model.get_input_embeddings().weight.shape[0]
        if words > rows:
            raise ValueError(f"model: expected a tokenizer of at most {rows} tokens, found one of {words}")
        encoder = model.get_encoder() if model.config.is_encoder_decoder else model

        def vectors(batch: Batch) -> Vectors:
            mask = batch["attention_mask"]
            states = encoder(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
            return {"dense": states[:, 0] if self.pooling == "first" else masked_mean(states, mask)}

        on_device = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in batches]
        return scorer_by_cosine(vectors, on_device, dict)

    def _tokens(self, tokenizer: Any, prefix: str, rows: Sequence[Row]) -> dict[str, Tensor]:
        texts = [prefix + fill_in(row["inputs_pretokenized"], row["targets_pretokenized"]) for row in rows]
        limit = min(self.max_length, tokenizer.model_max_length)
        encoded = tokenizer(
            texts, padding=True, truncation=True, max_length=limit, padding_side="right", return_tensors="pt"
        )
        if any(encoding.overflowing for encoding in encoded.encodings or ()):
            rank_zero_warn(f"dense: sentences of more than {limit} tokens are cut off there")
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def _load(auto: Any, name: str) -> Any:
    try:
        return auto.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        problem = f"model: can't load {name!r}: expected the folder or hub name of an encoder"
        raise ValueError(f"{problem} ({error})") from error


def _pieces(rows: list[Row], size: int) -> list[list[Row]]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]
