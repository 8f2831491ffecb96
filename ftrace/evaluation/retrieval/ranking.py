"""One ranking, and its metrics in expectation over the order of tied candidates.

A method that scores many candidates alike has not ranked them: whatever a sort makes of it is luck. So each metric here
is the mean over all orders of the tied, in closed form. One sort gives all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranking:
    """Where the relevant candidates of one query stand.

    Candidates of equal score are a group. Only groups that hold a relevant candidate are kept, best first.

    Args:
        num_candidates: How many were ranked.
        before: ``[G]`` int64, how many candidates are ranked above each group.
        tied: ``[G]`` int64, how many candidates each group has.
        hits: ``[G]`` int64, how many of them are relevant.

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
            relevant: Which candidates are relevant: ``[C]`` bool, or their places, int64 without duplicates.

        Raises:
            ValueError: If shapes or dtypes are off, or a score is not finite.
        """
        if scores.ndim != 1 or relevant.ndim != 1 or (relevant.dtype == bool and relevant.shape != scores.shape):
            raise ValueError(
                f"expected scores and relevant of one shape [C], found {scores.shape} and {relevant.shape}"
            )
        if relevant.dtype != bool and not np.issubdtype(relevant.dtype, np.integer):
            raise ValueError(f"relevant: expected bool or places, found {relevant.dtype}")
        if not np.isfinite(scores).all():
            raise ValueError("scores: expected finite numbers, found NaN or infinity")
        ascending = np.sort(scores)
        values, hits = np.unique(scores[relevant], return_counts=True)
        below, up_to = (np.searchsorted(ascending, values, side=side) for side in ("left", "right"))
        before = len(scores) - up_to
        return cls(len(scores), before[::-1], (up_to - below)[::-1], hits[::-1])

    @classmethod
    def perfect(cls, num_candidates: int, num_relevant: int) -> Ranking:
        """The ranking that begins with all relevant candidates."""
        groups = min(num_relevant, 1)
        count = np.full(groups, num_relevant, np.int64)
        return cls(num_candidates, np.zeros(groups, np.int64), count, count)

    def reversed(self) -> Ranking:
        """The ranking that begins with the last candidate."""
        before = self.num_candidates - self.before - self.tied
        return Ranking(self.num_candidates, before[::-1], self.tied[::-1], self.hits[::-1])

    @property
    def num_relevant(self) -> int:
        """How many candidates are relevant."""
        return int(self.hits.sum())

    def hits_at(self, k: int) -> float:
        """Relevant candidates among the best ``k``.

        Raises:
            ValueError: If k is below 1.
        """
        if k < 1:
            raise ValueError(f"k: expected at least 1, found {k}")
        taken = np.clip(k - self.before, 0, self.tied)
        return float((self.hits * (taken / self.tied)).sum())

    def reciprocal_rank(self) -> float:
        """One over the rank of the best relevant candidate; 0 if there is none.

        With r relevant among m tied candidates behind s others, the first relevant one is the j-th of them with
        probability ``r / (m - j + 1)`` times that of not having met one earlier.
        """
        if not len(self.hits):
            return 0.0
        behind, m, r = int(self.before[0]), int(self.tied[0]), int(self.hits[0])
        j = np.arange(1, m - r + 2)
        missed = np.cumprod((m - r - j[:-1] + 1) / (m - j[:-1] + 1))
        probability = np.append(1.0, missed) * r / (m - j + 1)
        return float((probability / (behind + j)).sum())

    def mean_rank(self) -> float:
        """The mean place of relevant candidates as a share of all, from 0 (the first) to 1; NaN if there is none."""
        if not len(self.hits):
            return float("nan")
        place = self.before + (self.tied - 1) / 2
        return float((self.hits * place).sum() / self.num_relevant / max(1, self.num_candidates - 1))
