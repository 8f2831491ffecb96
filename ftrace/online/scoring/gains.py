"""The sums of ``update`` scores in an interval, for the ledger."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ftrace.online.scoring.accumulator import ScoreAccumulator
from ftrace.online.scoring.contributions import padded
from ftrace.scores import Sum


class Gains:
    """The sums of ``update`` scores since they were last taken.

    Args:
        sums: The scores of the run, whose queries these are.

    Attributes:
        by_examples: Of this process's examples, ``[Q]`` float64.
        by_given: Of the gradients that the optimizer was given, which are the same in all processes.
    """

    def __init__(self, sums: ScoreAccumulator) -> None:
        self._sums = sums
        self.by_examples = self.by_given = torch.zeros(0, dtype=torch.float64)

    def add(self, by_examples: Tensor | None = None, by_given: Tensor | None = None) -> None:
        """Add sums, ``[Q]`` each; queries that were added since have 0 there."""
        queries = len(self._sums.query_ids)
        if by_examples is not None:
            self.by_examples = padded(self.by_examples, queries) + padded(by_examples, queries)
        if by_given is not None:
            self.by_given = padded(self.by_given, queries) + padded(by_given, queries)

    def take(self) -> tuple[Tensor, Tensor]:
        """Return both sums, ``[Q]``, and begin anew."""
        queries = len(self._sums.query_ids)
        taken = (padded(self.by_examples, queries), padded(self.by_given, queries))
        self.by_examples = self.by_given = torch.zeros(queries, dtype=torch.float64)
        return taken


def gain(scores: Mapping[Sum, Tensor]) -> Tensor | None:
    """Sum the ``update`` scores of all examples, ``[Q]`` float64; None if there are none."""
    values = scores.get(Sum("update"))
    return None if values is None else values.sum(0).double().cpu()
