"""Retrieval metrics as sum-state torchmetrics metrics: they add up over queries, batches and processes.

torchmetrics' own retrieval metrics treat scores <= 0 as not retrieved, and influence scores are often negative; nor
do they know ties.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torchmetrics import Metric

from ftrace.evaluation.retrieval.ranking import Ranking


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
        self.total += self.of_ranking(Ranking.of(scores.numpy(force=True), relevant.numpy(force=True)))
        self.count += 1

    @abstractmethod
    def of_ranking(self, ranking: Ranking) -> float:
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

    def of_ranking(self, ranking: Ranking) -> float:
        """The reciprocal rank of one query."""
        return ranking.reciprocal_rank()


class PrecisionAtK(_QueryMean):
    """Share of proponents among the best k, in expectation over ties.

    Args:
        k: At least 1.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def of_ranking(self, ranking: Ranking) -> float:
        """The precision of one query."""
        return ranking.hits_at(self.k) / self.k


class RecallAtK(_QueryMean):
    """Share of all proponents that are among the best k, in expectation over ties; 0 for a query without any.

    Args:
        k: At least 1; None takes each query's own number of proponents.
    """

    def __init__(self, k: int | None) -> None:
        super().__init__()
        self.k = k

    def of_ranking(self, ranking: Ranking) -> float:
        """The recall of one query."""
        proponents = max(ranking.num_relevant, 1)
        return ranking.hits_at(proponents if self.k is None else self.k) / proponents
