"""Lists of examples that were retrieved for queries, with their texts, as a source of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from ftrace.scores import as_ids
from ftrace.shown_text import counted
from ftrace.views.ranking import Ranking
from ftrace.views.sources import History, Row, id_of
from ftrace.views.words import sample_step


@dataclass(frozen=True)
class Listed:
    """Examples retrieved for one query.

    Args:
        names: Id or name of each example, strongest first.
        scores: Its score.
        texts: Its text.
        states_fact: Whether it states the query's fact; None if that is not known.
    """

    names: Sequence[int | str] = ()
    scores: Sequence[float] = ()
    texts: Sequence[str] = ()
    states_fact: Sequence[bool] | None = None


@dataclass(frozen=True)
class ListedQuery:
    """A query and the examples that were retrieved for it.

    Args:
        name: Its id or name.
        row: Its texts, as in ``queries.parquet``.
        proponents: The strongest proponents, best first.
        opponents: The strongest opponents, strongest first.
    """

    name: int | str
    row: Row
    proponents: Listed
    opponents: Listed = field(default_factory=Listed)


class ListedSource:
    """Lists of examples, such as the results of a search, in which only the strongest of each query are known.

    Args:
        name: How it is called beside others.
        queries: The queries.
        kind: The kind of scores; "" if it has no name.
        notes: Why the scores can't be trusted, a sentence each.
    """

    is_complete = False

    def __init__(self, name: str, queries: Sequence[ListedQuery], kind: str = "", notes: Sequence[str] = ()) -> None:
        self.name, self.kind = name, kind
        self._notes = notes
        self._queries = {id_of(query.name): query for query in queries}
        self._rows: dict[int, Row] = {}
        self._names: dict[int, str] = {}
        self._last_labels: tuple[int, Mapping[int, bool]] | None = None
        repeated = 0
        for query in queries:
            for listed in (query.proponents, query.opponents):
                repeated += len(listed.names) - len(set(map(id_of, listed.names)))
                for given, text in zip(listed.names, listed.texts, strict=True):
                    self._rows.setdefault(id_of(given), {"text": text})
                    if isinstance(given, str):
                        self._names[id_of(given)] = given
        if repeated:
            self._notes = [
                *notes,
                f"{counted(repeated, 'entry', 'entries')} left out, of examples that a list has several times: the "
                "strongest of each counts.",
            ]

    @property
    def query_ids(self) -> Sequence[int]:
        """Ids of the queries, in their order."""
        return list(self._queries)

    @property
    def has_labels(self) -> bool:
        """Whether any label says which examples state a query's fact."""
        return any(
            listed.states_fact is not None
            for query in self._queries.values()
            for listed in (query.proponents, query.opponents)
        )

    def doubts(self) -> Sequence[str]:
        """Return the notes against the scores."""
        return self._notes

    def ranking(self, query_id: int, *, largest: bool = True) -> Ranking | None:
        """Rank the proponents, or the opponents, that were retrieved for a query."""
        if query_id not in self._queries:
            return None
        query = self._queries[query_id]
        listed = query.proponents if largest else query.opponents
        ids = as_ids([id_of(name) for name in listed.names], "ids of retrieved examples")
        scores = np.array(listed.scores, np.float64)
        kept = _strongest_of_each(ids, scores if largest else -scores)
        strongest = max(map(abs, (*query.proponents.scores, *query.opponents.scores)), default=0.0)
        return Ranking(ids[kept], scores[kept], largest=largest, strongest=strongest)

    def query_rows(self, query_ids: Sequence[int]) -> list[Row | None]:
        """Return the texts of queries."""
        return [self._queries[query].row if query in self._queries else None for query in query_ids]

    def example_rows(self, example_ids: Sequence[int]) -> list[Row | None]:
        """Return the texts of examples that were retrieved for any query."""
        return [self._rows.get(example) for example in example_ids]

    def query_name(self, query_id: int) -> str | None:
        """Return a query's name; None if it is called by a number."""
        query = self._queries.get(query_id)
        return query.name if query is not None and isinstance(query.name, str) else None

    def example_name(self, example_id: int) -> str | None:
        """Return an example's name; None if it is called by a number."""
        return self._names.get(example_id)

    def states_fact(self, query_id: int, example_id: int) -> bool | None:
        """Tell what the label of a retrieved example says."""
        if self._last_labels is None or self._last_labels[0] != query_id:  # asked for one example after another
            self._last_labels = query_id, self._labels(query_id)
        return self._last_labels[1].get(example_id)

    def _labels(self, query_id: int) -> Mapping[int, bool]:
        query = self._queries.get(query_id)
        labels: dict[int, bool] = {}
        for listed in () if query is None else (query.proponents, query.opponents):
            if listed.states_fact is not None:
                for name, label in zip(listed.names, listed.states_fact, strict=True):
                    labels.setdefault(id_of(name), label)
        return labels

    def history(self, query_id: int) -> History | None:
        """Return None: what was retrieved knows nothing of training."""
        return None

    def sample_texts(self) -> Sequence[str]:
        """Return texts of examples that were retrieved for any query."""
        step = sample_step(len(self._rows))
        return [row["text"] for row in islice(self._rows.values(), 0, None, step)]


def _strongest_of_each(ids: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Return the positions of the strongest entry of each id, in the order of the list."""
    order = np.argsort(-strengths, kind="stable")
    _, first = np.unique(ids[order], return_index=True)
    return np.sort(order[first])
