"""Retrieval metrics as sum-state torchmetrics metrics: they add up over queries, batches and processes.

torchmetrics' own retrieval metrics treat scores <= 0 as not retrieved, and influence scores are often negative; nor
do they know ties.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torchmetrics import Metric

from ftrace.evaluation.ranking import expected_hits, expected_reciprocal_rank


class _QueryMean(Metric):
    """A mean over queries, kept as a sum and a count."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, relevant: Tensor) -> None:
        """Add one query: its candidates' scores ``[N]``, and whether each is a ground-truth proponent, ``[N]`` bool."""
        self.total += self.of_query(scores, relevant)
        self.count += 1

    @abstractmethod
    def of_query(self, scores: Tensor, relevant: Tensor) -> Tensor:
        """The metric of one query."""

    def compute(self) -> Tensor:
        """The mean over all queries so far; NaN without any."""
        return self.total / self.count


class MeanReciprocalRank(_QueryMean):
    """One over the rank of the best proponent, in expectation over ties.

    Example:
        >>> metric = MeanReciprocalRank()
        >>> metric.update(torch.tensor([-0.1, -0.3, -0.2]), torch.tensor([False, False, True]))
        >>> float(metric.compute())
        0.5
    """

    def of_query(self, scores: Tensor, relevant: Tensor) -> Tensor:
        """The reciprocal rank of one query."""
        return expected_reciprocal_rank(scores, relevant)


class PrecisionAtK(_QueryMean):
    """Share of proponents among the best k, in expectation over ties.

    Args:
        k: At least 1.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def of_query(self, scores: Tensor, relevant: Tensor) -> Tensor:
        """The precision of one query."""
        return expected_hits(scores, relevant, self.k) / self.k


class RecallAtK(_QueryMean):
    """Share of all proponents that are among the best k, in expectation over ties; 0 for a query without any.

    Args:
        k: At least 1; None takes each query's own number of proponents.
    """

    def __init__(self, k: int | None) -> None:
        super().__init__()
        self.k = k

    def of_query(self, scores: Tensor, relevant: Tensor) -> Tensor:
        """The recall of one query."""
        proponents = int(relevant.sum())
        hits = expected_hits(scores, relevant, self.k if self.k is not None else max(proponents, 1))
        return hits / max(proponents, 1)
