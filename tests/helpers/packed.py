"""Documents packed into rows, and what each of them is alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM

from ftrace.gradients import Documents
from helpers import tiny
from helpers.rehearsal_step import Step

IGNORED = -100


def _jittered(model: Any) -> Any:
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.double()


def qwen2(**changes: Any) -> Any:
    """With biases on queries, keys and values, and a tied head."""
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(
        vocab_size=tiny.VOCABULARY, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    return _jittered(Qwen2ForCausalLM(Qwen2Config(**settings, **changes)))


def neox(**changes: Any) -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(
        vocab_size=tiny.VOCABULARY, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    return _jittered(GPTNeoXForCausalLM(GPTNeoXConfig(**settings, **changes)))


def opt(**changes: Any) -> Any:
    """A model that takes position_ids, and builds no mask from them."""
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(
        vocab_size=tiny.VOCABULARY, hidden_size=16, ffn_dim=20, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=16, max_position_embeddings=32, dropout=0.0,
    )  # fmt: skip
    return _jittered(OPTForCausalLM(OPTConfig(**settings, **changes)))


MODELS = {"llama": tiny.llama, "qwen2": qwen2, "gpt_neox": neox, "gpt2": tiny.gpt2}


@dataclass
class Corpus:
    """Random documents by id, and the batches that they are packed into."""

    seed: int = 0
    documents: dict[int, Tensor] = field(default_factory=dict)

    def pack(self, rows: Sequence[Sequence[int]], *, padding: int = 0) -> dict[str, Tensor]:
        """Draw documents of these lengths, row by row.

        Args:
            padding: Tokens behind the longest row.

        Returns:
            A batch as the collators of TRL and Transformers make it, with an id for each document.
        """
        generator = torch.Generator().manual_seed(self.seed + len(self.documents))
        longest = max(map(sum, rows)) + padding
        made: dict[str, list[list[int]]] = {"input_ids": [], "position_ids": [], "labels": []}
        ids = []
        for lengths in rows:
            drawn = [torch.randint(2, tiny.VOCABULARY, (length,), generator=generator) for length in lengths]
            for tokens in drawn:
                ids.append(len(self.documents))
                self.documents[ids[-1]] = tokens
            rest = longest - sum(lengths)
            made["input_ids"].append([number for tokens in drawn for number in tokens.tolist()] + [0] * rest)
            made["position_ids"].append([place for length in lengths for place in range(length)] + [0] * rest)
            labels = [number for tokens in drawn for number in [IGNORED, *tokens[1:].tolist()]]
            made["labels"].append(labels + [IGNORED] * rest)
        return {name: torch.tensor(values) for name, values in made.items()} | {"example_id": torch.tensor(ids)}

    def alone(self, model: Any, batch: Any, i: int) -> Tensor:
        """The loss of a batch's document i, computed without the others, as part of the batch's mean."""
        tokens = self.documents[int(batch["example_id"][i])][None]
        logits = net_of(model)(input_ids=tokens, use_cache=False).logits[0, :-1]
        return F.cross_entropy(logits, tokens[0, 1:], reduction="sum") / count(batch)


def share(model: Any, batch: Any, owners: Tensor, i: int, **given: Any) -> Tensor:
    """The part of :func:`mean_loss` that document i's tokens have, in the pass of all documents."""
    own = batch["labels"].masked_fill(owners != i, IGNORED)
    return mean_loss(model, {**batch, "labels": own}, **given) * count({"labels": own}) / count(batch)


def net_of(model: Any) -> Any:
    return getattr(model, "net", model)


def count(batch: Any) -> Tensor:
    return (batch["labels"][:, 1:] != IGNORED).sum()


def mean_loss(model: Any, batch: Any, **given: Any) -> Tensor:
    """The mean over all tokens with labels."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask") if name in batch}
    logits = net_of(model)(**{**inputs, "use_cache": False, **given}).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="sum")
    return losses / count(batch).clamp(min=1)


def owners_of(rows: Sequence[Sequence[int]], padding: int = 0) -> Documents:
    """Which token of such a batch is whose, by counting."""
    longest = max(map(sum, rows)) + padding
    numbers = iter(range(sum(map(len, rows))))
    made = []
    for lengths in rows:
        of_row = [number for length in lengths for number in [next(numbers)] * length]
        made.append(of_row + [-1] * (longest - len(of_row)))
    return Documents(torch.tensor(made), sum(map(len, rows)))


@dataclass
class PackedStep(Step):
    """A step whose examples are documents: tokens are exchanged, and nothing else."""

    documents: Documents | None = None

    def exchanged(self, sources: Sequence[int] | None, stirred: bool) -> dict[str, Tensor]:
        """Exchange tokens one by one."""
        if sources is None or self.documents is None:
            return self.batch
        tokens, owners = self.batch["input_ids"], self.documents.owners
        made = tokens.clone()
        for example, source in enumerate(sources):
            given = tokens[owners == source]
            places = (owners == example).nonzero()
            for k, (row, column) in enumerate(places.tolist()):
                made[row, column] = given[k % len(given)]
        return {**self.batch, "input_ids": made}
