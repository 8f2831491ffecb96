"""Metrics of each query, as arrays from which means, intervals, differences and breakdowns are computed.

    MRR      one over the rank of the best proponent
    P@k      share of ground-truth proponents among the best k
    R@k      share of all ground-truth proponents that are among the best k; R@n: k is the query's number of them
    O@k      share of ground-truth proponents among the k strongest opponents: lower is better
    rank     mean rank of ground-truth proponents, from 0 (first) to 1 (last): lower is better

At the level of sentences, rows that are variants of one sentence are one candidate. Its score is the highest of theirs
(among opponents, the lowest), and it is relevant if any of its rows is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ftrace.evaluation.queries import EvaluatedQueries
from ftrace.evaluation.retrieval.ranking import Ranking
from ftrace.scores import ScoreStore

KS = (1, 3, 5, 10, 25)
RETRIEVAL = ("MRR", *[f"P@{k}" for k in KS], *[f"R@{k}" for k in KS], "R@n")
OPPONENTS = (*[f"O@{k}" for k in KS], "rank")
METRICS = (*RETRIEVAL, *OPPONENTS)
MAIN = ("MRR", "P@1", "P@10", "R@10", "R@n")
LOWER_IS_BETTER = frozenset(OPPONENTS)


class Pool(Protocol):
    """The candidates of each query."""

    def of(self, query_id: int) -> np.ndarray:
        """Return the candidates of a query: ids of examples, int64, ascending."""


@dataclass(frozen=True)
class WholeTrainingSet:
    """A pool that contains all examples for every query.

    Args:
        example_ids: ``[N]`` int64, ascending.
    """

    example_ids: np.ndarray

    def of(self, query_id: int) -> np.ndarray:
        """Return all examples."""
        return self.example_ids


@dataclass(frozen=True)
class _Sentences:
    """Candidates grouped by sentence: ``order`` sorts them so that sentences begin at ``starts``."""

    order: np.ndarray
    starts: np.ndarray
    of_candidate: np.ndarray

    @classmethod
    def of(cls, sentence_ids: np.ndarray) -> _Sentences:
        order = np.argsort(sentence_ids, kind="stable")
        _, starts, of_candidate = np.unique(sentence_ids[order], return_index=True, return_inverse=True)
        sentences = np.empty(len(order), np.int64)
        sentences[order] = of_candidate
        return cls(order, starts, sentences)

    def best(self, scores: np.ndarray) -> np.ndarray:
        """Return the highest score of each sentence."""
        best: np.ndarray = np.maximum.reduceat(scores[self.order], self.starts)
        return best


@dataclass(frozen=True)
class _Question:
    """One query's candidates, ready to be ranked."""

    query_id: int
    example_ids: np.ndarray
    sentences: _Sentences | None
    relevant: np.ndarray  # indices of candidates, or of sentences

    @property
    def num_candidates(self) -> int:
        return len(self.example_ids) if self.sentences is None else len(self.sentences.starts)


class Judge:
    """Metrics of stores' scores, all on the same candidates.

    Args:
        pool: The candidates of each query.
        sentence_ids: For each example's id, int64 ``[N]``, the sentence that it is a variant of; None to rank examples
            by themselves.

    Raises:
        ValueError: If there is no query, a query's pool is empty, or a pool lacks ground-truth proponents.
    """

    def __init__(self, queries: EvaluatedQueries, pool: Pool, sentence_ids: np.ndarray | None = None) -> None:
        if not len(queries):
            raise ValueError(
                f"expected at least one query to evaluate, found none ({queries.description}; "
                f"{queries.without_proponents} without proponents were kept out)"
            )
        self.queries = queries
        self._questions: list[_Question] = []
        for query_id, proponents in zip(queries.query_ids.tolist(), queries.proponents, strict=True):
            example_ids = pool.of(query_id)
            if not len(example_ids):
                raise ValueError(f"query {query_id}: expected at least one candidate in its pool, found none")
            indices, is_known = _find(proponents, example_ids)
            if not is_known.all():
                raise ValueError(
                    f"query {query_id}: {(~is_known).sum()} ground-truth proponents are not among the examples of its "
                    "pool, which would flatter recall. Are these the scores of a whole run?"
                )
            last = self._questions[-1] if self._questions else None
            if sentence_ids is None:
                sentences = None
            elif last is not None and last.example_ids is example_ids:
                sentences = last.sentences
            else:
                sentences = _Sentences.of(sentence_ids[example_ids])
            relevant = indices if sentences is None else np.unique(sentences.of_candidate[indices])
            self._questions.append(_Question(query_id, example_ids, sentences, relevant))

    @property
    def num_candidates(self) -> np.ndarray:
        """Number of candidates of each query, ``[Q]`` int64."""
        return np.array([question.num_candidates for question in self._questions])

    @property
    def num_proponents(self) -> np.ndarray:
        """Number of ground-truth proponents of each query, ``[Q]`` int64."""
        return np.array([len(question.relevant) for question in self._questions])

    def judge(self, store: ScoreStore, kind: str) -> dict[str, np.ndarray]:
        """Compute each of :data:`METRICS`, ``[Q]`` float64, for one kind of a store's scores.

        Raises:
            ValueError: If the store lacks a query, or a candidate of a query's pool.
        """
        missing = self.queries.query_ids[~np.isin(self.queries.query_ids, store.query_ids)]
        if len(missing):
            raise ValueError(
                f"{store.path}: {len(missing)} evaluated queries have no scores, among them {missing[:3].tolist()}"
            )
        rankings = []
        last: np.ndarray | None = None
        rows: np.ndarray | slice = slice(None)
        for question in self._questions:
            if question.example_ids is not last:
                last = question.example_ids
                rows = _rows_in(store, question)
            scores = store.scores(question.query_id, kind)[rows]
            _check_complete(store, question, int(np.isnan(scores).sum()) if store.has_candidates else 0)
            try:
                rankings.append(_rank(question, scores))
            except ValueError as error:
                raise ValueError(f"{store.path}, kind {kind!r}, query {question.query_id}: {error}") from error
        return _metrics(rankings)

    def ceiling(self) -> dict[str, np.ndarray]:
        """Compute the highest value that any method can reach, by metric, ``[Q]``."""
        perfect = [Ranking.perfect(question.num_candidates, len(question.relevant)) for question in self._questions]
        return _metrics([(ranking, ranking.reversed()) for ranking in perfect])


def _find(wanted: np.ndarray, ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each id in an ascending array, and whether it is there."""
    indices = np.minimum(np.searchsorted(ascending, wanted), max(0, len(ascending) - 1))
    return indices, ascending[indices] == wanted if len(ascending) else np.zeros(len(wanted), bool)


def _rows_in(store: ScoreStore, question: _Question) -> np.ndarray | slice:
    """Return the rows of a store that a question's candidates have."""
    if np.array_equal(store.example_ids, question.example_ids):
        return slice(None)
    rows, is_known = _find(question.example_ids, store.example_ids)
    _check_complete(store, question, int((~is_known).sum()))
    return rows


def _rank(question: _Question, scores: np.ndarray) -> tuple[Ranking, Ranking]:
    """Rank by proponents and by opponents."""
    if question.sentences is None:
        ranking = Ranking.of(scores, question.relevant)
        return ranking, ranking.reversed()
    best, worst = question.sentences.best(scores), question.sentences.best(-scores)
    return Ranking.of(best, question.relevant), Ranking.of(worst, question.relevant)


def _check_complete(store: ScoreStore, question: _Question, num_missing: int) -> None:
    if num_missing:
        raise ValueError(
            f"expected all rows on the same pool, but {store.path} has no scores for {num_missing:,} of the "
            f"{len(question.example_ids):,} candidates of query {question.query_id}. Score them too, or evaluate on "
            "candidate pools (--pool candidates)"
        )


def _metrics(rankings: Sequence[tuple[Ranking, Ranking]]) -> dict[str, np.ndarray]:
    """Compute all metrics from each query's rankings by proponents and by opponents."""
    metrics: dict[str, list[float]] = {name: [] for name in METRICS}
    for best, worst in rankings:
        relevant = max(1, best.num_relevant)
        metrics["MRR"].append(best.reciprocal_rank())
        for k in KS:
            hits = best.hits_at(k)
            metrics[f"P@{k}"].append(hits / k)
            metrics[f"R@{k}"].append(hits / relevant)
            metrics[f"O@{k}"].append(worst.hits_at(k) / k)
        metrics["R@n"].append(best.hits_at(relevant) / relevant)
        metrics["rank"].append(best.mean_rank())
    return {name: np.array(values) for name, values in metrics.items()}
