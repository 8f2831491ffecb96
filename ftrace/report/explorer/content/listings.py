"""The examples that any method lists for a query, each once, with their places in every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np

from ftrace.evaluation.retrieval.ranking import Ranking
from ftrace.report.explorer.content.rankings import Counts, Places, QueryRanking, rank_query
from ftrace.report.explorer.format import Lists, Place
from ftrace.report.explorer.short_numbers import exact, rounded
from ftrace.scores.ids import places_of
from ftrace.views import Source

PRECISION_AT = 10
_DIGITS_OF_SHARES = 4


@dataclass(frozen=True)
class MethodListing:
    """What one method lists for a query.

    Args:
        proponents: Positions among the query's examples, strongest first.
        opponents: Likewise; None if nobody asked for them, or the method knows none.
        counts: Of all examples; None if only the strongest are known.
        places: Where each of the query's examples stands.
        strongest: The largest absolute score.
        precision: P@10 by the query's list of ground-truth proponents; None if that isn't known.
        best_precision: The highest that any order of the examples would reach; None likewise.
    """

    proponents: np.ndarray
    opponents: np.ndarray | None
    counts: Counts | None
    places: Places
    strongest: float
    precision: float | None = None
    best_precision: float | None = None


@dataclass(frozen=True)
class Listing:
    """What all methods list for a query.

    Args:
        query_id: The query.
        ids: Ids of the examples, ``[n]``: by their best place in any method, opponents last.
        methods: By method; None if it doesn't know the query.
    """

    query_id: int
    ids: np.ndarray
    methods: tuple[MethodListing | None, ...]


def list_examples(
    sources: Sequence[Source], query_id: int, k: int, opponents: int, relevant: np.ndarray | None = None
) -> Listing:
    """List the strongest examples of a query by each method, and find out where each stands in the others.

    Args:
        sources: The methods.
        query_id: The query.
        k: How many proponents of each.
        opponents: How many opponents of each.
        relevant: Ids of the examples that state the query's fact; None if they aren't known.
    """
    rankings = [rank_query(source, query_id) for source in sources]
    tops = [np.zeros(0, np.int64) if ranking is None else ranking.proponents(k) for ranking in rankings]
    bottoms = [np.zeros(0, np.int64) if ranking is None else ranking.opponents(opponents) for ranking in rankings]
    in_turn = chain(_in_turn(tops), _in_turn(bottoms))
    ids = np.array(list(dict.fromkeys(in_turn)), np.int64)
    order = np.argsort(ids)
    methods: list[MethodListing | None] = []
    for source, ranking, top, bottom in zip(sources, rankings, tops, bottoms, strict=True):
        if ranking is None:
            methods.append(None)
            continue
        knows_opponents = opponents and (source.is_complete or len(bottom))
        methods.append(
            MethodListing(
                places_of(top, ids, order),
                places_of(bottom, ids, order) if knows_opponents else None,
                ranking.counts,
                ranking.places(ids),
                ranking.strongest,
                *precision_by_ids(ranking, relevant),
            )
        )
    return Listing(query_id, ids, tuple(methods))


def precision_by_ids(ranking: QueryRanking, relevant: np.ndarray | None) -> tuple[float | None, float | None]:
    """Return P@10 in expectation over the order of equal scores, and the highest that any order would reach.

    Args:
        ranking: The ranking; of one in which only the strongest are known, neither is known.
        relevant: Ids of the examples that state the query's fact, each once; None if they aren't known.
    """
    if relevant is None or not len(relevant) or ranking.counts is None:
        return None, None
    places = ranking.places(relevant)
    ranks, ties = places.ranks[places.is_ranked], places.ties[places.is_ranked]
    candidates = ranking.counts.candidates
    best = Ranking.perfect(candidates, len(ranks)).hits_at(PRECISION_AT) / PRECISION_AT
    return precision_by_ranks(candidates, ranks, ties, np.ones(len(ranks))), best


def precision_by_ranks(candidates: int, ranks: np.ndarray, ties: np.ndarray, hits: np.ndarray) -> float:
    """Return P@10 in expectation over the order of equal scores, as ``ftrace evaluate`` does.

    Args:
        candidates: Number of examples that are ranked.
        ranks: Of some of them, all that may be among the first ten and count, ``[n]``.
        ties: How many others have the same score, ``[n]``.
        hits: Whether each counts, ``[n]``.
    """
    return Ranking(candidates, ranks - 1, ties + 1, hits).hits_at(PRECISION_AT) / PRECISION_AT


def _in_turn(lists: Sequence[np.ndarray]) -> chain[int]:
    """Take the first of each list, then the second of each, and so on."""
    rows = zip_longest(*(ids.tolist() for ids in lists))
    return chain.from_iterable([example for example in row if example is not None] for row in rows)


def lists_of(method: MethodListing) -> Lists:
    """Return a method's lists in the form of a report."""
    counts, places = method.counts, method.places
    return {
        "candidates": None if counts is None else counts.candidates,
        "positive": None if counts is None else counts.positive,
        "negative": None if counts is None else counts.negative,
        "proponents": method.proponents.tolist(),
        "opponents": None if method.opponents is None else method.opponents.tolist(),
        "more_proponents_like_last": _more_like_last(method.proponents, places.ranks, places.ties),
        "more_opponents_like_last": (
            0 if method.opponents is None else _more_like_last(method.opponents, places.ranks_from_below, places.ties)
        ),
    }


def _more_like_last(listed: np.ndarray, ranks: np.ndarray, ties: np.ndarray) -> int:
    """Count the examples that have the score of the last one listed, and are not listed for no other reason."""
    return int(ranks[listed[-1]] + ties[listed[-1]] - len(listed)) if len(listed) else 0


def places_in(method: MethodListing | None, count: int) -> list[Place | None]:
    """Return where each example of a query stands, in the form of a report.

    Args:
        method: The method; None if it doesn't know the query.
        count: How many examples there are.
    """
    if method is None:
        return [None] * count
    places = method.places
    shares = rounded(places.scores / method.strongest, _DIGITS_OF_SHARES) if method.strongest else [None] * count
    columns = zip(
        places.is_ranked.tolist(),
        places.ranks.tolist(),
        places.ranks_from_below.tolist(),
        places.ties.tolist(),
        exact(places.scores),
        shares,
        strict=True,
    )
    return [
        {"rank": rank or None, "rank_from_below": below or None, "ties": ties, "score": score, "share": share}
        if is_ranked
        else None
        for is_ranked, rank, below, ties, score, share in columns
    ]


def disagreement(listing: Listing, k: int = PRECISION_AT) -> float | None:
    """Return 1 minus the share of their k strongest that two methods have in common, on average over pairs of methods.

    Where one of two lists fewer than k, the share is of those that it lists. None if fewer than two list any.
    """
    tops = [set(method.proponents[:k].tolist()) for method in listing.methods if method is not None]
    tops = [top for top in tops if top]
    shared = [
        len(first & second) / min(len(first), len(second))
        for place, first in enumerate(tops)
        for second in tops[place + 1 :]
    ]
    return 1 - sum(shared) / len(shared) if shared else None
