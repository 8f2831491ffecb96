"""A ranking, and its metrics in expectation over the order of tied candidates.

A method that gives many candidates the same score has not ranked them, and the order in which a sort leaves them is
chance. So each metric is the mean over all orders of the tied candidates, in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranking:
    """The ranks of the relevant candidates of one query.

    Tied candidates form a group. Only groups with a relevant candidate are kept, best first.

    Args:
        num_candidates: Number of candidates that were ranked.
        before: Number of candidates ranked above each group, ``[G]`` int64.
        tied: Number of candidates in each group, ``[G]`` int64.
        hits: Number of relevant candidates in each group, ``[G]`` int64.

    Example:
        >>> ranking = Ranking.of(np.array([3.0, 1.0, 1.0]), np.array([False, True, False]))
        >>> ranking.hits_at(2)
        0.5
        >>> round(ranking.reciprocal_rank(), 4)
        0.4167
    """

    num_candidates: int
    before: np.ndarray
    tied: np.ndarray
    hits: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, relevant: np.ndarray) -> Ranking:
        """Rank candidates.

        Args:
            scores: ``[C]``, higher is better.
            relevant: Whether each candidate is relevant, ``[C]`` bool, or the indices of those that are, without
                duplicates.

        Raises:
            ValueError: If shapes or dtypes are off, or a score is not finite.
        """
        if scores.ndim != 1 or relevant.ndim != 1 or (relevant.dtype == bool and relevant.shape != scores.shape):
            raise ValueError(
                f"expected scores and relevant of one shape [C], found {scores.shape} and {relevant.shape}"
            )
        if relevant.dtype != bool and not np.issubdtype(relevant.dtype, np.integer):
            raise ValueError(f"relevant: expected bool or indices, found {relevant.dtype}")
        if not np.isfinite(scores).all():
            raise ValueError("scores: expected finite numbers, found NaN or infinity")
        ascending = np.sort(scores)
        values, hits = np.unique(scores[relevant], return_counts=True)
        below, up_to = (np.searchsorted(ascending, values, side=side) for side in ("left", "right"))
        before = len(scores) - up_to
        return cls(len(scores), before[::-1], (up_to - below)[::-1], hits[::-1])

    @classmethod
    def perfect(cls, num_candidates: int, num_relevant: int) -> Ranking:
        """Make the ranking that begins with all relevant candidates."""
        groups = min(num_relevant, 1)
        count = np.full(groups, num_relevant, np.int64)
        return cls(num_candidates, np.zeros(groups, np.int64), count, count)

    def reversed(self) -> Ranking:
        """Return the ranking in reverse order."""
        before = self.num_candidates - self.before - self.tied
        return Ranking(self.num_candidates, before[::-1], self.tied[::-1], self.hits[::-1])

    @property
    def num_relevant(self) -> int:
        """Number of relevant candidates."""
        return int(self.hits.sum())

    def hits_at(self, k: int) -> float:
        """Return the expected number of relevant candidates among the best ``k``.

        Raises:
            ValueError: If k is below 1.
        """
        if k < 1:
            raise ValueError(f"k: expected at least 1, found {k}")
        taken = np.clip(k - self.before, 0, self.tied)
        return float((self.hits * (taken / self.tied)).sum())

    def reciprocal_rank(self) -> float:
        """Return the expected reciprocal of the rank of the best relevant candidate; 0 if there is none.

        With r relevant ones among m tied candidates, which stand behind ``ahead`` others, the first relevant one is the
        j-th of the m with probability ``r / (m - j + 1)`` times the probability that none came earlier.
        """
        if not len(self.hits):
            return 0.0
        ahead, m, r = int(self.before[0]), int(self.tied[0]), int(self.hits[0])
        j = np.arange(1, m - r + 2)
        missed = np.cumprod((m - r - j[:-1] + 1) / (m - j[:-1] + 1))
        probability = np.append(1.0, missed) * r / (m - j + 1)
        return float((probability / (ahead + j)).sum())

    def mean_rank(self) -> float:
        """Return relevant candidates' expected mean rank, scaled to 0 (first) to 1 (last); NaN if there is none."""
        if not len(self.hits):
            return float("nan")
        rank = self.before + (self.tied - 1) / 2
        return float((self.hits * rank).sum() / self.num_relevant / max(1, self.num_candidates - 1))
