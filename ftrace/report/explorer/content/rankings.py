"""Where the examples of one query stand by one method: the strongest of them, and any others' exact ranks.

All of it is read off the sorted scores, so that a thousand queries of a hundred thousand examples take seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ftrace.scores.ids import ascending_order, places_of
from ftrace.views import Ranking, Source

UNKNOWN = 0  # as a rank


@dataclass(frozen=True)
class Places:
    """Where some examples stand, ``[n]`` each.

    Args:
        is_ranked: Whether it is ranked; the rest says nothing of one that isn't.
        ranks: 1 plus the number of examples with a larger score; 0 if that isn't known.
        ranks_from_below: 1 plus the number with a smaller score; 0 if that isn't known.
        ties: How many other examples have the same score.
        scores: The score.
    """

    is_ranked: np.ndarray
    ranks: np.ndarray
    ranks_from_below: np.ndarray
    ties: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Counts:
    """How many examples are ranked, and of which sign."""

    candidates: int
    positive: int
    negative: int


class QueryRanking(Protocol):
    """The examples of one query by one method."""

    strongest: float
    """The largest absolute score."""
    counts: Counts | None
    """None if only the strongest are known."""

    def proponents(self, k: int) -> np.ndarray:
        """Return the ids of the first k, equal scores in the order of the source's ids; the order of ``store.top``."""

    def opponents(self, k: int) -> np.ndarray:
        """Return the ids of the last k with a negative score, likewise."""

    def places(self, ids: np.ndarray) -> Places:
        """Tell where some examples stand."""


def rank_query(source: Source, query_id: int) -> QueryRanking | None:
    """Rank a query's examples; None if the source doesn't know the query."""
    ranking = source.ranking(query_id)
    if ranking is None:
        return None
    if source.is_complete:
        return SortedRanking(ranking)
    opponents = source.ranking(query_id, largest=False)
    assert opponents is not None
    return ListedRanking(ranking, opponents)


class SortedRanking:
    """A ranking of all examples.

    Args:
        ranking: The ranking, from the strongest proponent on.
    """

    def __init__(self, ranking: Ranking) -> None:
        self._ids = ranking.ids
        self._scores = ranking.scores if ranking.scores.dtype.kind == "f" else ranking.scores.astype(np.float64)
        self._order = ascending_order(self._ids)
        self._ascending = np.sort(self._scores)
        self.strongest = ranking.strongest
        negative, not_positive = (int(np.searchsorted(self._ascending, 0, side=side)) for side in ("left", "right"))
        self.counts: Counts | None = Counts(len(self._ids), len(self._ids) - not_positive, negative)

    def proponents(self, k: int) -> np.ndarray:
        """See :class:`QueryRanking`."""
        return self._top(k, self._scores, self._ascending[-k:][:1])

    def opponents(self, k: int) -> np.ndarray:
        """See :class:`QueryRanking`."""
        assert self.counts is not None
        count = min(k, self.counts.negative)
        return self._top(count, -self._scores, -self._ascending[:count][-1:])

    def _top(self, k: int, scores: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Return the ids of the k largest scores.

        Args:
            k: How many.
            scores: The scores.
            last: The k-th largest of them, or the smallest if there are fewer, ``[1]``; ``[0]`` if there are none.
        """
        if not k or not len(last):
            return self._ids[:0]
        larger = np.flatnonzero(scores > last)
        larger = larger[np.argsort(-scores[larger], kind="stable")]
        equal = np.flatnonzero(scores == last)[: k - len(larger)]
        return self._ids[np.concatenate([larger, equal])]

    def places(self, ids: np.ndarray) -> Places:
        """See :class:`QueryRanking`."""
        positions = places_of(ids, self._ids, self._order)
        is_ranked = positions >= 0
        scores = self._scores[positions] if len(self._ids) else np.zeros(len(ids))
        below, up_to = (np.searchsorted(self._ascending, scores, side=side) for side in ("left", "right"))
        return Places(is_ranked, len(self._ids) - up_to + 1, below + 1, up_to - below - 1, scores)


class ListedRanking:
    """A ranking of which only the strongest proponents, and perhaps the strongest opponents, are known.

    Args:
        proponents: The strongest proponents.
        opponents: The strongest opponents.
    """

    counts: Counts | None = None

    def __init__(self, proponents: Ranking, opponents: Ranking) -> None:
        self._up, self._down = proponents, opponents
        self.strongest = proponents.strongest

    def proponents(self, k: int) -> np.ndarray:
        """See :class:`QueryRanking`."""
        return np.array(self._up.top(k), np.int64)

    def opponents(self, k: int) -> np.ndarray:
        """See :class:`QueryRanking`."""
        negative = set(self._down.ids[self._down.scores < 0].tolist())
        return np.array([example for example in self._down.top(max(1, k)) if example in negative][:k], np.int64)

    def places(self, ids: np.ndarray) -> Places:
        """See :class:`QueryRanking`; ranks are those within the lists."""
        above, below = self._within(self._up, ids), self._within(self._down, ids)
        in_up, in_down = above[0], below[0]
        return Places(
            in_up | in_down,
            np.where(in_up, above[1], UNKNOWN),
            np.where(in_down, below[1], UNKNOWN),
            np.where(in_up, above[2], below[2]),
            np.where(in_up, above[3], below[3]),
        )

    @staticmethod
    def _within(ranking: Ranking, ids: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return which examples a list has, their ranks in it, ties and scores."""
        positions = places_of(ids, ranking.ids, ascending_order(ranking.ids))
        scores = ranking.scores[positions] if len(ranking) else np.zeros(len(ids))
        stronger = ranking.scores > scores[:, None] if ranking.largest else ranking.scores < scores[:, None]
        ties = (ranking.scores == scores[:, None]).sum(1) - 1
        return positions >= 0, stronger.sum(1) + 1, ties, scores
