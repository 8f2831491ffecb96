"""Layer profiles of scores, and their agreement with other profiles of the same layers.

A profile has a number for each layer: here, the summed scores of a query's strongest proponents in that layer, from a
store whose scores are broken down by layer. Two profiles can be compared query by query (do they rank the layers
alike?) and layer by layer (do they rank the queries alike?).

Shape letters: Q queries, L layers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from ftrace.evaluation.estimates import Estimate, sample_means
from ftrace.scores import ScoreStore
from ftrace.scores.correlation import centred_ranks

AXIS = "layer"
FEW_LAYERS = 3  # below, a rank correlation is hardly more than a sign


@dataclass(frozen=True)
class ScoreProfile:
    """The summed scores of some examples for a query, by layer.

    Args:
        parts: Sum over the examples, for each part of the model by which the store breaks scores down.
        example_ids: The examples, ``[k]``, strongest first.
        scores: Their scores summed over all parts, ``[k]``.
    """

    query_id: int
    parts: dict[str, float]
    example_ids: np.ndarray
    scores: np.ndarray

    @property
    def total(self) -> float:
        """Sum over all parts: the examples' scores together."""
        return sum(self.parts.values())

    def share(self, part: str) -> float:
        """Return a part's share of the total: below 0 or above 1 if parts differ in sign, NaN if the total is 0."""
        return self.parts[part] / self.total if self.total else float("nan")


def score_profile(
    store: ScoreStore, query_id: int, kind: str | None = None, k: int = 10, example_ids: Collection[int] | None = None
) -> ScoreProfile:
    """Sum the scores of a query's strongest proponents by layer.

    Args:
        store: A store with a breakdown by layer.
        kind: One of the store's kinds; default: the only one, or dot.
        k: Number of proponents.
        example_ids: Examples to sum over instead, such as those that state the fact.

    Raises:
        KeyError: If the store has no such query.
        ValueError: If the store's scores are not broken down by layer, or it lacks examples.
    """
    if AXIS not in store.breakdown:
        raise ValueError(
            f"{store.path}: expected scores that are broken down by layer, found breakdowns {list(store.breakdown)}. "
            "Train with OnlineTracIn's breakdown: [layer]"
        )
    scores = store.scores(query_id, kind)
    if example_ids is None:
        ids, summed = store.top(query_id, k, kind)
        rows = np.searchsorted(store.example_ids, ids)
    else:
        wanted = np.unique(np.fromiter(example_ids, np.int64))
        rows = np.flatnonzero(np.isin(store.example_ids, wanted) & ~np.isnan(scores))
        if len(rows) < len(wanted):
            raise ValueError(
                f"{store.path}: query {query_id}: expected scores of {len(wanted)} examples, found those of "
                f"{len(rows)}. Are these the scores of a whole run?"
            )
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        ids, summed = store.example_ids[rows], scores[rows]
    parts = {
        part: float(values[rows].sum(dtype=np.float64)) for part, values in store.parts(query_id, AXIS, kind).items()
    }
    return ScoreProfile(query_id, parts, np.array(ids), np.array(summed))


def _unit_ranks(values: np.ndarray) -> np.ndarray:
    """Scale centred ranks to a vector of length 1; NaN where the values are constant or not finite."""
    undefined = np.full(len(values), np.nan)
    if not np.isfinite(values).all():
        return undefined
    ranks = centred_ranks(values)
    size = float(np.sqrt(ranks @ ranks))
    return ranks / size if size else undefined


@dataclass(frozen=True)
class ProfileAgreement:
    """The agreement of two layer profiles of the same queries.

    Args:
        by_query: Rank correlation over layers for each query, ``[Q]``; NaN where a profile is constant.
        by_query_mismatched: Mean correlation of one profile of each query with the other profile of queries of other
            facts, averaged over both directions, ``[Q]``; NaN where there is none.
        by_layer: Rank correlation over queries for each layer, ``[L]``; NaN where a side is constant.
        matched: Mean of ``by_query``, with its interval.
        mismatched: Mean of ``by_query_mismatched``: the agreement that doesn't depend on the query.
        difference: Matched minus mismatched, paired: the agreement that is particular to the query.
        num_queries: Number of queries that the means are over: those whose correlations are defined.
    """

    by_query: np.ndarray
    by_query_mismatched: np.ndarray
    by_layer: np.ndarray
    matched: Estimate
    mismatched: Estimate
    difference: Estimate
    num_queries: int


def compare_profiles(first: np.ndarray, second: np.ndarray, facts: Sequence[str], seed: int = 0) -> ProfileAgreement:
    """Compare two layer profiles of the same queries.

    All layers are ranked together, those of an encoder with those of its decoder. Means are over queries, and intervals
    resample facts, as in :func:`ftrace.evaluation.sample_means`.

    Args:
        first: ``[Q, L]``.
        second: ``[Q, L]``.
        facts: The fact that each query asks for.
        seed: Seed of the resampling.

    Raises:
        ValueError: If the profiles are not of the same queries and layers, there are fewer than two layers, or no
            query has two profiles that can be ranked.
    """
    if first.shape != second.shape or first.ndim != 2 or len(facts) != len(first):
        raise ValueError(
            f"expected two profiles of as many queries and layers, and as many facts, found shapes {first.shape} and "
            f"{second.shape}, and {len(facts)} facts"
        )
    if first.shape[1] < 2:
        raise ValueError(f"expected profiles of at least two layers, which can be ranked, found {first.shape[1]}")
    correlations = _rows_of_unit_ranks(first) @ _rows_of_unit_ranks(second).T
    by_query = np.diag(correlations).copy()
    mismatched = _mismatched(correlations, facts)
    by_layer = np.array([_unit_ranks(a) @ _unit_ranks(b) for a, b in zip(first.T, second.T, strict=True)])
    known = np.flatnonzero(~np.isnan(by_query))
    if not len(known):
        raise ValueError(
            f"expected some query whose two profiles differ by layer, found none of {len(first)}: there is nothing to "
            "rank"
        )
    of_facts = [facts[query] for query in known.tolist()]
    (matched,) = sample_means([by_query[known, None]], [of_facts], seed=seed).estimates()
    with_others = known[~np.isnan(mismatched[known])]
    unknown = Estimate(float("nan"), float("nan"), float("nan"))
    of_mismatched, difference = unknown, unknown
    if len(with_others):
        columns = np.stack([mismatched, by_query - mismatched], 1)[with_others]
        of_facts = [facts[query] for query in with_others.tolist()]
        of_mismatched, difference = sample_means([columns], [of_facts], seed=seed).estimates()
    return ProfileAgreement(by_query, mismatched, by_layer, matched, of_mismatched, difference, len(known))


def _rows_of_unit_ranks(profiles: np.ndarray) -> np.ndarray:
    return np.array([_unit_ranks(profile) for profile in profiles])


def _mismatched(correlations: np.ndarray, facts: Sequence[str]) -> np.ndarray:
    """Average each query's correlations with queries of other facts, ``[Q]``; NaN where there are none."""
    names = np.array(facts)
    either = np.stack([correlations, correlations.T])
    of_others = (names[:, None] != names[None, :])[None] & ~np.isnan(either)
    counts = of_others.sum((0, 2))
    sums = np.where(of_others, either, 0.0).sum((0, 2))
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
