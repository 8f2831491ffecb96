"""Metrics of files of results, as in TrackStar's paper: of the stored list alone, in its order.

    MRR          one over the rank of the first proponent that states the fact; 0 if none in the list does
    recall@10    1 if any of the first ten states it, else 0
    P@k          share of the first k that state it; in a list shorter than k, those missing count as not stating it

This recall is not that of score stores (``R@10``, the share of all ground-truth proponents), because a file contains
only what was retrieved. Files are aligned by ``example_id``; metrics are over the queries that have labels in all.

Source: Chang et al. 2024, arXiv 2410.17413, and the metrics of its released viewer.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ftrace.evaluation.estimates import RESAMPLES, Estimate, Sample, sample_means
from ftrace.evaluation.options import known_name
from ftrace.evaluation.query_groups import QueryGroup, shorter_first
from ftrace.evaluation.results.files import ENTAILED, RetrievalResult, read_results

ResultsBy = Literal["query_set", "relation", "c4_frequency_bucket"]
RESULTS_BY: tuple[ResultsBy, ...] = get_args(ResultsBy)
PRECISION_AT = (1, 10)
RECALL_AT = 10


@dataclass(frozen=True, slots=True)
class JudgedResult:
    """One query's results without their texts, which may be long.

    Args:
        example_id: The query's name.
        question: Hash of its prompt and target.
        fact: The fact that it asks for (``fact_id``); None if unknown.
        groups: The value of each field that queries are grouped by; "" without the field.
        num_proponents: Number of stored proponents.
        values: Each metric, in the order of :func:`metric_names`.
    """

    example_id: str
    question: bytes
    fact: str | None
    groups: Mapping[ResultsBy, str]
    num_proponents: int
    values: tuple[float, ...]

    @property
    def unit(self) -> str:
        """The unit that is resampled for intervals: the fact, or else the query itself."""
        return f"query {self.example_id}" if self.fact is None else f"fact {self.fact}"

    def completed_by(self, others: Iterable[JudgedResult]) -> JudgedResult:
        """Fill in the fact and the groups that only other files' results have."""
        results = [self, *others]
        fact = next((result.fact for result in results if result.fact is not None), None)
        groups = {by: next((result.groups[by] for result in results if result.groups[by]), "") for by in RESULTS_BY}
        return replace(self, fact=fact, groups=groups)


@dataclass(frozen=True)
class JudgedFile:
    """The metrics of a file of results.

    Args:
        queries: The queries with labels, by name.
        without_labels: Names of the queries without.
        labelled_by: Number of queries whose labels are from each source: "annotation" or "entailment".
    """

    queries: Mapping[str, JudgedResult]
    without_labels: frozenset[str]
    labelled_by: Mapping[str, int]


@dataclass(frozen=True)
class ResultsEvaluation:
    """Metrics of one or several files over the same queries.

    Args:
        names: Names of the files.
        metrics: Names of the metrics.
        queries: The queries, in the order of the first file.
        values: Each query's metrics in each file, ``[Q, F, M]`` float64.
        notes: Notes for readers of the table.
        against: The file that others' differences are taken to.
        seed: Seed of the resampling.
        resamples: Number of bootstrap resamples.
    """

    names: tuple[str, ...]
    metrics: tuple[str, ...]
    queries: tuple[JudgedResult, ...]
    values: np.ndarray
    notes: tuple[str, ...] = ()
    against: str | None = None
    seed: int = 0
    resamples: int = RESAMPLES

    @cached_property
    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """For each file, each metric's mean and interval."""
        return self._by_file(self._sample(np.ones(len(self.queries), bool)).estimates())

    @cached_property
    def differences(self) -> dict[str, dict[str, Estimate]]:
        """Each metric minus that of the file :attr:`against`, paired by query, for each other file."""
        if self.against is None:
            return {}
        first = self.names.index(self.against) * len(self.metrics)
        partners = np.tile(np.arange(first, first + len(self.metrics)), len(self.names))
        differences = self._by_file(self._sample(np.ones(len(self.queries), bool)).differences(partners))
        del differences[self.against]
        return differences

    def groups(self, by: ResultsBy) -> list[QueryGroup]:
        """Evaluate each group of queries by itself; there are none if no query has the field."""
        labels = np.array([query.groups[by] for query in self.queries])
        if not any(labels):
            return []
        groups = []
        for name in shorter_first(set(labels.tolist())):
            mask = labels == name
            estimates = self._by_file(self._sample(mask).estimates())
            groups.append(QueryGroup(by, name or f"(no {by})", int(mask.sum()), estimates))
        return groups

    def _sample(self, mask: np.ndarray) -> Sample:
        """Resample the queries for which ``mask``, ``[Q]`` bool, is true."""
        facts = [query.unit for query, taken in zip(self.queries, mask, strict=True) if taken]
        values = self.values[mask].reshape(len(facts), -1)
        return sample_means([values], [facts], self.resamples, self.seed)

    def _by_file(self, estimates: Sequence[Estimate]) -> dict[str, dict[str, Estimate]]:
        width = len(self.metrics)
        return {
            name: dict(zip(self.metrics, estimates[index * width : (index + 1) * width], strict=True))
            for index, name in enumerate(self.names)
        }


def metric_names(precision_at: Sequence[int] = PRECISION_AT) -> tuple[str, ...]:
    """Name the metrics."""
    return ("MRR", f"recall@{RECALL_AT}", *[f"P@{k}" for k in precision_at])


def result_metrics(correct: Sequence[bool], precision_at: Sequence[int] = PRECISION_AT) -> tuple[float, ...]:
    """Compute the metrics of one query.

    Args:
        correct: Whether each stored proponent states the fact, best first.
        precision_at: The k of each P@k.

    Returns:
        A value for each of :func:`metric_names`.

    Example:
        >>> metric_names([1, 4]), result_metrics([False, True, True], [1, 4])
        (('MRR', 'recall@10', 'P@1', 'P@4'), (0.5, 1.0, 0.0, 0.5))
    """
    rank = next((rank for rank, right in enumerate(correct, 1) if right), None)
    precisions = [sum(correct[:k]) / k for k in precision_at]
    return (1 / rank if rank else 0.0, float(any(correct[:RECALL_AT])), *precisions)


def judge_results(results: Iterable[RetrievalResult], precision_at: Sequence[int] = PRECISION_AT) -> JudgedFile:
    """Compute the metrics of one file's results, one by one; memory doesn't grow with their texts."""
    queries, without, labelled_by = {}, set(), Counter[str]()
    for result in results:
        name = str(result.example_id)
        correct = result.states_fact
        if correct is None:
            without.add(name)
            continue
        labelled_by[str(result.labelled_by)] += 1
        fields: dict[str, Any] = {"query_set": result.query_set, **result.annotations}
        groups = {by: "" if fields.get(by) is None else str(fields[by]) for by in RESULTS_BY}
        question = hashlib.sha256(f"{result.prompt}\0{result.target}".encode()).digest()[:16]
        fact = None if fields.get("fact_id") is None else str(fields["fact_id"])
        values = result_metrics(correct, precision_at)
        queries[name] = JudgedResult(name, question, fact, groups, len(correct), values)
    return JudgedFile(queries, frozenset(without), labelled_by)


def evaluate_results(
    files: Mapping[str, Path],
    precision_at: Sequence[int] = PRECISION_AT,
    against: str | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> ResultsEvaluation:
    """Compare files of results over the queries that have labels in all of them.

    Args:
        files: Files by the name of their rows.
        precision_at: The k of each P@k.
        against: The file to take differences to; default: the first.
        seed: Seed of the resampling.
        resamples: Number of bootstrap resamples.

    Raises:
        ValueError: If a file is damaged, has no labels, has another question under the same name, or shares no query
            with the others.
    """
    if not precision_at or min(precision_at) < 1 or len(set(precision_at)) < len(precision_at):
        raise ValueError(f"precision_at: expected different numbers of at least 1, found {list(precision_at)}")
    names = list(files)
    if against is not None:
        known_name(against, names, "against")
    judged = {name: judge_results(read_results(file), precision_at) for name, file in files.items()}
    for name, judged_file in judged.items():
        if not judged_file.queries:
            raise ValueError(
                f"{files[name]}: expected labels (proponent_correct or proponent_ais_scores), found none for any of "
                f"its {len(judged_file.without_labels)} queries, so there is nothing to measure"
            )
    first, *others = judged.values()
    common = [query for query in first.queries if all(query in other.queries for other in others)]
    if not common:
        raise ValueError(f"expected queries with labels that all files have, found no example_id in all of {names}")
    for name, other in judged.items():
        differing = [query for query in common if other.queries[query].question != first.queries[query].question]
        if differing:
            raise ValueError(
                f"{files[name]}: {len(differing)} queries have another prompt or target than in {files[names[0]]}, "
                f"among them example_id {differing[:3]}. Are these results for the same queries?"
            )
    queries = [first.queries[query].completed_by(other.queries[query] for other in others) for query in common]
    values = np.array([[judged_file.queries[query].values for judged_file in judged.values()] for query in common])
    return ResultsEvaluation(
        names=tuple(names),
        metrics=metric_names(precision_at),
        queries=tuple(queries),
        values=values,
        notes=tuple(_notes(judged, queries, max(RECALL_AT, *precision_at))),
        against=(against or names[0]) if others else None,
        seed=seed,
        resamples=resamples,
    )


def _notes(judged: Mapping[str, JudgedFile], queries: Sequence[JudgedResult], deepest: int) -> Iterable[str]:
    """Yield what was left out, and where the labels come from."""
    over = "queries (not all have a fact_id)" if any(query.fact is None for query in queries) else "facts"
    yield f"percent; ±: half the 95% interval over {over}; lists as stored; recall@{RECALL_AT}: any correct"
    kept = {query.example_id for query in queries}
    words = {"annotation": "annotated", "entailment": f"entailment score above {ENTAILED}"}
    for name, judged_file in judged.items():
        of_file = f"{name}: " if len(judged) > 1 else ""
        kinds = [f"{words[kind]} ({count} queries)" for kind, count in judged_file.labelled_by.items()]
        yield f"{of_file}correct: {', '.join(kinds)}"
        if judged_file.without_labels:
            yield f"{of_file}{len(judged_file.without_labels)} queries without correctness labels left out"
        rest = len(judged_file.queries.keys() - kept)
        if rest:
            yield f"{of_file}{rest} labelled queries left out, which another file lacks or has no labels for"
        short = sum(judged_file.queries[query].num_proponents < deepest for query in kept)
        if short:
            yield f"{of_file}{short} lists end before rank {deepest}; what they lack counts as not correct"
