"""Tail-patch figures of several methods: mean rises of the target's probability, also by kind of example."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ftrace.evaluation.estimates import RESAMPLES, Estimate, sample_means
from ftrace.evaluation.queries import EvaluatedQueries
from ftrace.evaluation.tail_patch.example_kinds import KINDS, ExampleKinds

if TYPE_CHECKING:
    from ftrace.evaluation.tail_patch.patching import PatchedPairs  # imports torch

Picks = Mapping[int, np.ndarray]


@dataclass(frozen=True)
class OfKind:
    """A method's examples of one kind.

    Args:
        count: Number of such examples, over all queries.
        share: Their share of a query's examples.
        rise: Mean rise over them; NaN if there are none, and without an interval if all belong to one query.
    """

    count: int
    share: Estimate
    rise: Estimate


@dataclass(frozen=True)
class TailPatchRow:
    """The effect of a step on a method's examples.

    Args:
        rise: Rise of the probability of the query's target by a step, averaged over a query's examples, then over
            queries.
        beyond_random: The rise minus that of random examples, paired by query; None for random examples themselves.
        raised: Share of examples whose step raises the probability.
        kinds: Figures by kind of example, in the order of KINDS; empty if the data don't tell kinds.
    """

    rise: Estimate
    beyond_random: Estimate | None
    raised: Estimate
    kinds: tuple[OfKind, ...] = ()


@dataclass(frozen=True)
class TailPatchTable:
    """Tail-patch figures of several methods, with the settings they were computed with.

    Args:
        rows: Figures by the name of the method.
        probability: Mean probability of the queries' targets before the step.
        k: Number of examples for each query.
        snapshot: Name of the snapshot.
        step: The optimizer step, in words.
        settings: The optimizer step as numbers and names, for programs.
        seed: Seed of random examples and of the resampling.
        notes: Notes for readers of the table.
        resamples: Number of bootstrap resamples.
    """

    rows: Mapping[str, TailPatchRow]
    probability: Estimate
    queries: EvaluatedQueries
    k: int
    snapshot: str
    step: str
    settings: Mapping[str, str | float]
    seed: int
    notes: tuple[str, ...] = ()
    resamples: int = RESAMPLES


def summarize_rises(
    patched: PatchedPairs,
    picks: Mapping[str, Picks],
    queries: EvaluatedQueries,
    random: str,
    kinds: ExampleKinds | None = None,
    seed: int = 0,
) -> tuple[dict[str, TailPatchRow], Estimate]:
    """Average rises over each method's examples and over queries.

    A pair whose probability is NaN, because a step overflowed for example, is left out of the query's means. A query
    with no pair left for one of the methods is left out of all, so that differences stay paired. See
    :func:`notes_on_rises`.

    Args:
        patched: All pairs of queries and picked examples.
        picks: For each method, each query's examples; a query without any counts as not raised.
        random: The method whose examples are random.
        kinds: Kinds of the examples; None if the data don't tell kinds.
        seed: Seed of the resampling.

    Returns:
        Each method's row, and the mean probability before the step; NaN if no query is left.
    """
    before = dict(zip(patched.query_ids.tolist(), patched.before.tolist(), strict=True))
    is_known = _known_queries(patched, picks, queries)
    if not is_known.any():
        unknown = Estimate(math.nan, math.nan, math.nan)
        of_kinds = () if kinds is None else (OfKind(0, unknown, unknown),) * len(KINDS)
        empty = TailPatchRow(unknown, unknown, unknown, of_kinds)
        return {name: replace(empty, beyond_random=None) if name == random else empty for name in picks}, unknown
    queries = queries.where(is_known)
    columns = [np.array([before[query] for query in queries.query_ids.tolist()])]
    counts: list[np.ndarray] = []
    for of_method in picks.values():
        figures = [_of_query(patched.rises, query, of_method[query], kinds) for query in queries.query_ids.tolist()]
        columns += list(np.stack([means for means, _ in figures], axis=1))
        counts.append(np.sum([count for _, count in figures], axis=0))
    sample = sample_means([np.stack(columns, axis=1)], [queries.facts], seed=seed)
    width = (len(columns) - 1) // len(picks)
    firsts = {name: 1 + index * width for index, name in enumerate(picks)}
    estimates, beyond = sample.estimates(), sample.differences(firsts[random])
    rows = {}
    for (name, first), count in zip(firsts.items(), counts, strict=True):
        of_kinds = tuple(
            OfKind(int(count[kind]), estimates[share], _sure(sample.ratio(share + 1, share), columns[share]))
            for kind, share in enumerate(range(first + 2, first + width, 2))
        )
        minus_random = None if name == random else beyond[first]
        rows[name] = TailPatchRow(estimates[first], minus_random, estimates[first + 1], of_kinds)
    return rows, estimates[0]


def notes_on_rises(patched: PatchedPairs, picks: Mapping[str, Picks], queries: EvaluatedQueries) -> tuple[str, ...]:
    """Say what :func:`summarize_rises` leaves out; no notes if all probabilities are finite."""
    bad = int((~np.isfinite(patched.after - patched.before)).sum())
    if not bad:
        return ()
    left = _known_queries(patched, picks, queries)
    lost = f", and {(~left).sum()} of {len(left)} queries with them" if not left.all() else ""
    return (
        f"left out: {bad} of {len(patched.after)} pairs whose probability is NaN before or after the step{lost}",
        *([] if left.any() else ["NaN: no query is left"]),
    )


def _known_queries(patched: PatchedPairs, picks: Mapping[str, Picks], queries: EvaluatedQueries) -> np.ndarray:
    """Tell which queries, ``[Q]``, have a finite probability before, and one after a step of each method's examples."""
    before = dict(zip(patched.query_ids.tolist(), patched.before.tolist(), strict=True))
    is_known = []
    for query in queries.query_ids.tolist():
        rises = [
            [patched.rises[query, example] for example in of_method[query].tolist()] for of_method in picks.values()
        ]
        is_lost = [len(of_method) and not np.isfinite(of_method).any() for of_method in rises]
        is_known.append(math.isfinite(before[query]) and not any(is_lost))
    return np.array(is_known, dtype=bool)


def _of_query(
    rises: Mapping[tuple[int, int], float], query: int, examples: np.ndarray, kinds: ExampleKinds | None
) -> tuple[np.ndarray, np.ndarray]:
    """Compute one query's columns, and its number of examples of each kind.

    The columns are the mean rise, the share raised, and for each kind its share and its part of the mean rise.
    """
    values = np.array([rises[query, example] for example in examples.tolist()])
    examples, values = examples[np.isfinite(values)], values[np.isfinite(values)]
    size = max(1, len(values))
    means = [values.sum() / size, (values > 0).sum() / size]
    if kinds is None:
        return np.array(means), np.zeros(0, np.int64)
    is_of = kinds.of(query, examples)[:, None] == np.arange(len(KINDS)) if len(values) else np.zeros((0, len(KINDS)))
    of_kinds = np.stack([is_of.sum(0), (values[:, None] * is_of).sum(0)], axis=1) / size
    return np.concatenate([means, of_kinds.ravel()]), is_of.sum(0)


def _sure(rise: Estimate, shares: np.ndarray) -> Estimate:
    """Drop an estimate's interval if only one query has such examples, because resampling would call it certain."""
    return rise if (shares > 0).sum() > 1 else replace(rise, low=math.nan, high=math.nan)


def random_examples(query_ids: Sequence[int], num_examples: int, k: int, seed: int) -> dict[int, np.ndarray]:
    """Draw k random examples for each query; they don't depend on which other queries there are."""
    return {
        query: np.random.default_rng([seed, query]).choice(num_examples, min(k, num_examples), replace=False)
        for query in query_ids
    }


def some_proponents(queries: EvaluatedQueries, k: int, seed: int) -> dict[int, np.ndarray]:
    """Draw k ground-truth proponents of each query, or take all if there are fewer."""
    return {
        query: np.random.default_rng([seed, query, 1]).choice(of_query, min(k, len(of_query)), replace=False)
        for query, of_query in zip(queries.query_ids.tolist(), queries.proponents, strict=True)
    }
