"""Sequences of tokens that a FactLM reads, and which of them a layer's positions belong to.

Shape letters: B rows, T and S positions of inputs and labels, P positions of a run of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ftrace.data import Architecture
from ftrace.gradients import TokenProducts
from ftrace.models.fact_lm import IGNORED

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class TokenSequence:
    """One sequence of tokens of each row of a batch.

    Args:
        name: "input" and "target" of an encoder-decoder, "text" of a decoder-only model.
        ids: ``[B, T]``. A target's are the tokens that are predicted, at the positions that predict them.
        mask: ``[B, T]`` bool, whether a position is one of the row's, and no padding.
    """

    name: str
    ids: Tensor
    mask: Tensor

    @property
    def length(self) -> int:
        """Number of positions of a row, padding included."""
        return self.ids.shape[1]


def with_lengths_apart(batch: Mapping[str, Tensor], architecture: Architecture) -> Batch:
    """Pad an encoder-decoder's batch until a number of positions tells which of its sequences they belong to.

    Neither length is then 1 or a multiple of the other: also a layer that reads one sequence in several heads has no
    other's length.

    Args:
        batch: A collator's batch of training rows.
        architecture: Of the model.
    """
    widened = dict(batch)
    if architecture == "decoder-only":
        return widened
    T, S = (max(2, batch[name].shape[1]) for name in ("input_ids", "labels"))
    while T % S == 0 or S % T == 0:
        T += 1
    widened["labels"] = _padded(batch["labels"], S, IGNORED)
    widened["input_ids"] = _padded(batch["input_ids"], T, 0)  # any token: the mask hides it
    widened["attention_mask"] = _padded(batch["attention_mask"], T, 0)
    return widened


def _padded(values: Tensor, length: int, filler: int) -> Tensor:
    return F.pad(values, (0, length - values.shape[1]), value=filler)


def sequences_of(batch: Mapping[str, Tensor], architecture: Architecture) -> list[TokenSequence]:
    """List the sequences of a batch of training rows."""
    read = batch["attention_mask"] == 1
    if architecture == "decoder-only":
        return [TokenSequence("text", batch["input_ids"], read)]
    predicted = batch["labels"] != IGNORED
    return [TokenSequence("input", batch["input_ids"], read), TokenSequence("target", batch["labels"], predicted)]


def positions_of(run: TokenProducts, sequences: list[TokenSequence]) -> tuple[TokenSequence, Tensor] | None:
    """Tell which sequence the positions of a layer's run belong to.

    Args:
        run: The products ``[B, P, Q]`` of a run of a layer.
        sequences: Of different lengths.

    Returns:
        The sequence, and the products by its positions, ``[B, T, Q]``: those of a pair of tokens count for the one that
        attends. None if the positions are those of no sequence.
    """
    B, P, Q = run.products.shape
    for sequence in sequences:
        T = sequence.length
        if run.of_pairs and P == T * T:
            return sequence, run.products.view(B, T, T, Q).sum(2)
        if not run.of_pairs and P == T:
            return sequence, run.products
    return None
