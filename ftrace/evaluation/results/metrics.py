"""Metrics of files of results, as TrackStar's paper has them: of the stored list alone, in its order.

    MRR          one over the rank of the first proponent that states the fact; 0 if none in the list does
    recall@10    1 if any of the first ten does, else 0
    P@k          share of the first k that do; what a shorter list lacks doesn't

Recall is not that of score stores (``R@10``, the share of all ground-truth proponents): a file knows only what was
retrieved. Files are aligned by ``example_id``: metrics are over the queries that all of them have, with labels.

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
    """What is kept of one query's results, whose texts may be long.

    Args:
        example_id: The query's name.
        question: Hash of its prompt and target.
        fact: Which fact it asks for (``fact_id``); None where that isn't known.
        groups: Which group it is in, by field; without the field, "".
        num_proponents: How many were stored.
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
        """What is drawn anew for intervals: its fact, or else the query itself."""
        return f"query {self.example_id}" if self.fact is None else f"fact {self.fact}"

    def completed_by(self, others: Iterable[JudgedResult]) -> JudgedResult:
        """With the fact and the groups that only other files know of."""
        every = [self, *others]
        fact = next((one.fact for one in every if one.fact is not None), None)
        groups = {by: next((one.groups[by] for one in every if one.groups[by]), "") for by in RESULTS_BY}
        return replace(self, fact=fact, groups=groups)


@dataclass(frozen=True)
class JudgedFile:
    """What is kept of a file of results.

    Args:
        queries: Those with labels, by name.
        without_labels: Names of those that have none.
        labelled_by: What says how many queries' proponents state the fact: "annotation" or "entailment".
    """

    queries: Mapping[str, JudgedResult]
    without_labels: frozenset[str]
    labelled_by: Mapping[str, int]


@dataclass(frozen=True)
class ResultsEvaluation:
    """Metrics of one or several files over the same queries.

    Args:
        names: What the files are called.
        metrics: Names of the metrics.
        queries: The queries, as the first file has them.
        values: ``[Q, F, M]`` float64.
        notes: What a reader must know of these figures.
        against: The file that differences are taken to.
        seed: Of resampling.
        resamples: How often to draw anew for intervals.
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
        """For each other file, each metric minus that of the one :attr:`against`, paired by query."""
        if self.against is None:
            return {}
        first = self.names.index(self.against) * len(self.metrics)
        partners = np.tile(np.arange(first, first + len(self.metrics)), len(self.names))
        found = self._by_file(self._sample(np.ones(len(self.queries), bool)).differences(partners))
        del found[self.against]
        return found

    def groups(self, by: ResultsBy) -> list[QueryGroup]:
        """The same by group of queries; none where no query has the field."""
        labels = np.array([query.groups[by] for query in self.queries])
        if not any(labels):
            return []
        found = []
        for name in shorter_first(set(labels.tolist())):
            mask = labels == name
            estimates = self._by_file(self._sample(mask).estimates())
            found.append(QueryGroup(by, name or f"(no {by})", int(mask.sum()), estimates))
        return found

    def _sample(self, mask: np.ndarray) -> Sample:
        """Of some queries, ``[Q]`` bool."""
        facts = [query.unit for query, taken in zip(self.queries, mask, strict=True) if taken]
        values = self.values[mask].reshape(len(facts), -1)
        return sample_means([values], [facts], self.resamples, self.seed)

    def _by_file(self, estimates: Sequence[Estimate]) -> dict[str, dict[str, Estimate]]:
        width = len(self.metrics)
        return {
            name: dict(zip(self.metrics, estimates[place * width : (place + 1) * width], strict=True))
            for place, name in enumerate(self.names)
        }


def metric_names(precision_at: Sequence[int] = PRECISION_AT) -> tuple[str, ...]:
    """What the metrics are called."""
    return ("MRR", f"recall@{RECALL_AT}", *[f"P@{k}" for k in precision_at])


def result_metrics(correct: Sequence[bool], precision_at: Sequence[int] = PRECISION_AT) -> tuple[float, ...]:
    """Metrics of one query.

    Args:
        correct: Whether each stored proponent states the fact, the best first.
        precision_at: How many of the first to take the precision of.

    Returns:
        One value for each of :func:`metric_names`.

    Example:
        >>> metric_names([1, 4]), result_metrics([False, True, True], [1, 4])
        (('MRR', 'recall@10', 'P@1', 'P@4'), (0.5, 1.0, 0.0, 0.5))
    """
    rank = next((rank for rank, right in enumerate(correct, 1) if right), None)
    found = [1 / rank if rank else 0.0, float(any(correct[:RECALL_AT]))]
    return (*found, *[sum(correct[:k]) / k for k in precision_at])


def judge_results(results: Iterable[RetrievalResult], precision_at: Sequence[int] = PRECISION_AT) -> JudgedFile:
    """Judge one file's results, one by one; memory doesn't grow with their texts."""
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
    """Compare files of results, over the queries that all of them have, with labels.

    Args:
        files: Files by the name of their rows.
        precision_at: How many of the first proponents to take the precision of.
        against: The file to take differences to; default: the first.
        seed: Of resampling.
        resamples: How often to draw anew for intervals.

    Raises:
        ValueError: If a file is damaged, has no labels, asks another question under the same name, or shares no query
            with the others.
    """
    if not precision_at or min(precision_at) < 1 or len(set(precision_at)) < len(precision_at):
        raise ValueError(f"precision_at: expected different numbers of at least 1, found {list(precision_at)}")
    names = list(files)
    if against is not None:
        known_name(against, names, "against")
    judged = {name: judge_results(read_results(file), precision_at) for name, file in files.items()}
    for name, one in judged.items():
        if not one.queries:
            raise ValueError(
                f"{files[name]}: expected labels (proponent_correct or proponent_ais_scores), found none for any of "
                f"its {len(one.without_labels)} queries, so there is nothing to measure"
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
    values = np.array([[one.queries[query].values for one in judged.values()] for query in common])
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
    """What was left out, and what the labels are."""
    over = "queries (not all have a fact_id)" if any(query.fact is None for query in queries) else "facts"
    yield f"percent; ±: half the 95% interval over {over}; lists as stored; recall@{RECALL_AT}: any correct"
    kept = {query.example_id for query in queries}
    words = {"annotation": "annotated", "entailment": f"entailment score above {ENTAILED}"}
    for name, one in judged.items():
        of_file = f"{name}: " if len(judged) > 1 else ""
        kinds = [f"{words[kind]} ({count} queries)" for kind, count in one.labelled_by.items()]
        yield f"{of_file}correct: {', '.join(kinds)}"
        if one.without_labels:
            yield f"{of_file}{len(one.without_labels)} queries without correctness labels left out"
        rest = len(one.queries.keys() - kept)
        if rest:
            yield f"{of_file}{rest} labelled queries left out, which another file lacks or has no labels for"
        short = sum(one.queries[query].num_proponents < deepest for query in kept)
        if short:
            yield f"{of_file}{short} lists end before rank {deepest}; what they lack counts as not correct"
