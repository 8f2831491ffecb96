"""Embeddings of sentences by any Hugging Face encoder, and their cosines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from ftrace.attribution.method import AttributionMethod
from ftrace.attribution.passes import Batch, Pass, Scorer, score_in_passes
from ftrace.attribution.task import Row, Task
from ftrace.attribution.vectors import Vectors, masked_mean, scorer_by_cosine
from ftrace.data import fill_in
from ftrace.scores import ScoreStore


@dataclass(frozen=True)
class SentenceVectors:
    """Sentences' embeddings; the options are those of :class:`ftrace.attribution.Dense`."""

    model: str
    pooling: Literal["mean", "first"]
    query_prefix: str
    document_prefix: str
    max_length: int

    def score(self, method: AttributionMethod, task: Task) -> ScoreStore:
        """Score a task's examples by cosines, in a method's name.

        Raises:
            ValueError: If the encoder can't be loaded, or its tokenizer is another model's.
        """
        tokenizer = _load(AutoTokenizer, self.model)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        of_queries = partial(self._tokens, tokenizer, self.query_prefix)
        batches = [of_queries(rows) for rows in _pieces(task.query_rows(), task.data.settings.query_batch_size)]
        passes = [Pass(0, len(task.queries), partial(self._begin, batches, len(tokenizer)))]
        return score_in_passes(method, task, passes, partial(self._tokens, tokenizer, self.document_prefix), {})

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
