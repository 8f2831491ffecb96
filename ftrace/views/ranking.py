"""One query's examples in order: the strongest of them, and where any other one stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ftrace.scores.ranking import strongest


@dataclass(frozen=True)
class Place:
    """What one source of scores says of one example.

    Args:
        rank: 1 plus the number of examples with a stronger score.
        ties: How many other examples have the same score, and so the same rank.
        score: The score.
        share: The score as a share of the query's largest absolute score; None if all scores are 0.
    """

    rank: int
    ties: int
    score: float
    share: float | None


class Ranking:
    """The examples of one query, from the strongest proponent down or from the strongest opponent up.

    Args:
        ids: Ids of the examples, int64 ``[M]``.
        scores: Their scores, ``[M]``. Examples with a score that is not finite are left out.
        largest: Whether it begins with the largest scores.
        strongest: The largest absolute score that shares are of; default: that of ``scores``.
    """

    def __init__(
        self, ids: np.ndarray, scores: np.ndarray, *, largest: bool = True, strongest: float | None = None
    ) -> None:
        finite = np.isfinite(scores)
        self.ids: np.ndarray = ids if finite.all() else ids[finite]
        self.scores: np.ndarray = scores if finite.all() else scores[finite]
        self.largest = largest
        self.strongest = float(np.abs(self.scores).max(initial=0.0)) if strongest is None else strongest

    def __len__(self) -> int:
        return len(self.ids)

    def top(self, k: int) -> list[int]:
        """Return the ids of the first k; equal scores in the order of ``ids``."""
        order = strongest(self.scores, k, largest=self.largest)
        return [int(example) for example in self.ids[order]]

    def place(self, example_id: int) -> Place | None:
        """Return where an example stands; None if it is not in the ranking."""
        known = np.flatnonzero(self.ids == example_id)
        if not len(known):
            return None
        score = self.scores[known[0]]
        stronger = self.scores > score if self.largest else self.scores < score
        share = float(score) / self.strongest if self.strongest else None
        ties = int((self.scores == score).sum()) - 1
        return Place(1 + int(stronger.sum()), ties, float(score), share)

    def count_of_sign(self) -> int:
        """Count the examples whose score has the sign of a proponent's, or of an opponent's."""
        return int((self.scores > 0).sum() if self.largest else (self.scores < 0).sum())


def overlap(first: Sequence[int], second: Sequence[int]) -> int:
    """Count the examples that two lists share."""
    return len(set(first) & set(second))
