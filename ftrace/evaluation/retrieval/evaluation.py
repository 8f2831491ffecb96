"""Comparison of score stores on the same candidates and queries, in one or several runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ftrace.arguments import checked
from ftrace.evaluation.estimates import RESAMPLES, Estimate, Sample, sample_means
from ftrace.evaluation.options import known_name
from ftrace.evaluation.queries import EvaluatedQueries, Half
from ftrace.evaluation.retrieval.metrics import METRICS, Judge, Pool, WholeTrainingSet
from ftrace.evaluation.retrieval.published import PublishedRow
from ftrace.evaluation.stores import row_name
from ftrace.scores import ScoreStore


@dataclass(frozen=True)
class RunMetrics:
    """Every method's metrics of every query of one run.

    Args:
        rows: For each row's name, its metrics by name, each ``[Q]``.
        ceiling: The highest value that any method can reach, by metric, ``[Q]``.
        num_candidates: Size of each query's pool, ``[Q]``.
        num_proponents: Number of ground-truth proponents in it, ``[Q]``.
    """

    queries: EvaluatedQueries
    rows: Mapping[str, Mapping[str, np.ndarray]]
    ceiling: Mapping[str, np.ndarray]
    num_candidates: np.ndarray
    num_proponents: np.ndarray

    def where(self, mask: np.ndarray) -> RunMetrics:
        """Select the queries for which ``mask``, ``[Q]`` bool, is true."""
        rows = {name: {metric: values[mask] for metric, values in row.items()} for name, row in self.rows.items()}
        ceiling = {metric: values[mask] for metric, values in self.ceiling.items()}
        queries = self.queries.where(mask)
        return RunMetrics(queries, rows, ceiling, self.num_candidates[mask], self.num_proponents[mask])


@dataclass(frozen=True)
class Evaluation:
    """Metrics of several methods.

    Args:
        runs: Each run's metrics, all with the same rows.
        pool: The pool of candidates, in words.
        level: The unit that is ranked, "row" or "sentence".
        half: The half of the queries that is evaluated.
        notes: Notes for readers of the table, such as how rows were chosen.
        hidden: Rows that another was chosen from; they are left out of printed tables.
        against: The row that others' differences are taken to.
        published: Published rows to compare with.
        seed: Seed of the resampling.
        resamples: Number of bootstrap resamples.
        metrics: The metrics to estimate.
    """

    runs: tuple[RunMetrics, ...]
    pool: str = "the whole training set"
    level: str = "row"
    half: Half = "all"
    notes: tuple[str, ...] = ()
    hidden: frozenset[str] = frozenset()
    against: str | None = None
    published: tuple[PublishedRow, ...] = ()
    seed: int = 0
    resamples: int = RESAMPLES
    metrics: tuple[str, ...] = METRICS

    @property
    def names(self) -> list[str]:
        """Names of the rows."""
        return list(self.runs[0].rows)

    @cached_property
    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """Mean and interval of each metric, by row."""
        return self._by_row(self._sample.estimates())

    @cached_property
    def ceiling(self) -> dict[str, float]:
        """The highest value that any method can reach, by metric."""
        return {name: float(np.mean([run.ceiling[name].mean() for run in self.runs])) for name in self.metrics}

    @cached_property
    def differences(self) -> dict[str, dict[str, Estimate]]:
        """Each metric minus that of the row :attr:`against`, paired by query, for each other row.

        Raises:
            ValueError: If there is no such row.
        """
        if self.against is None:
            return {}
        known_name(self.against, self.names, "against")
        first = self.names.index(self.against) * len(self.metrics)
        partners = np.tile(np.arange(first, first + len(self.metrics)), len(self.names))
        differences = self._by_row(self._sample.differences(partners))
        del differences[self.against]
        return differences

    def where(self, masks: Sequence[np.ndarray]) -> Evaluation:
        """Select the queries for which ``masks``, ``[Q]`` bool for each run, are true."""
        return replace(self, runs=tuple(run.where(mask) for run, mask in zip(self.runs, masks, strict=True)))

    def in_half(self, half: Half) -> Evaluation:
        """Select one half of the queries.

        Raises:
            ValueError: If a run has no query in it.
        """
        masks = [run.queries.in_half(half) for run in self.runs]
        if not all(mask.any() for mask in masks):
            raise ValueError(f"half: expected queries in the {half} half, found none: too few have been learned")
        return replace(self.where(masks), half=half)

    @cached_property
    def _sample(self) -> Sample:
        values = [
            np.stack([run.rows[name][metric] for name in self.names for metric in self.metrics], axis=1)
            for run in self.runs
        ]
        facts, data = [run.queries.facts for run in self.runs], [run.queries.data for run in self.runs]
        return sample_means(values, facts, self.resamples, self.seed, data)

    def _by_row(self, estimates: Sequence[Estimate]) -> dict[str, dict[str, Estimate]]:
        width = len(self.metrics)
        return {
            name: dict(zip(self.metrics, estimates[index * width : (index + 1) * width], strict=True))
            for index, name in enumerate(self.names)
        }


@checked
def evaluate(
    stores: Mapping[str, ScoreStore],
    queries: EvaluatedQueries,
    pool: Pool | None = None,
    sentence_ids: np.ndarray | None = None,
) -> Evaluation:
    """Compare the score stores of one run; each kind of each store is a row.

    Args:
        stores: Stores by the name of their rows.
        queries: The queries to evaluate.
        pool: The examples that are ranked for each query; default: all examples of the first store.
        sentence_ids: For each example's id, the sentence that it is a variant of, int64 ``[N]``; sentences are then
            ranked instead of examples.

    Raises:
        ValueError: If there is no query, or a store lacks a query or a candidate.
    """
    if not stores:
        raise ValueError("expected at least one score store to evaluate, found none")
    judge = Judge(queries, pool or WholeTrainingSet(next(iter(stores.values())).example_ids), sentence_ids)
    rows = {
        row_name(name, kind): judge.judge(store, kind) for name, store in stores.items() for kind in store.kinds
    }  # fmt: skip
    run = RunMetrics(queries, rows, judge.ceiling(), judge.num_candidates, judge.num_proponents)
    return Evaluation((run,), level="row" if sentence_ids is None else "sentence")


def over_runs(evaluations: Iterable[Evaluation]) -> Evaluation:
    """Combine the evaluations of several runs.

    Raises:
        ValueError: If they have different rows.
    """
    first, *others = evaluations
    for other in others:
        different = sorted(set(first.names) ^ set(other.names))
        if different:
            raise ValueError(f"expected the same rows in all runs, but {different} are in some only")
    return replace(first, runs=(*first.runs, *[run for other in others for run in other.runs]))
