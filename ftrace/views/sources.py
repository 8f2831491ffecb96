"""Where scores and texts come from: a score store, or lists of retrieved examples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ftrace.scores import NEVER_ASKED, Answered, ScoreStore, stable_id
from ftrace.views.ranking import Ranking
from ftrace.views.words import sample_step

Row = Mapping[str, Any]


@dataclass(frozen=True)
class History:
    """What a query's loss and its answers did while the model trained.

    Args:
        losses: At the beginning and at the end, in nats; None if nobody kept a ledger.
        answered: When it was answered right.
    """

    losses: tuple[float, float] | None = None
    answered: Answered = NEVER_ASKED


class Source(Protocol):
    """Scores of examples for queries, of one kind, with what is known of the texts."""

    name: str
    """How it is called beside others."""
    kind: str
    """The kind of scores; "" if they have no name."""
    is_complete: bool
    """Whether an example that is not in a ranking is no candidate. Otherwise it just isn't among the listed ones."""

    @property
    def query_ids(self) -> Sequence[int]:
        """Ids of the queries, in their order."""

    def doubts(self) -> Sequence[str]:
        """Return why the scores can't be trusted, a sentence each."""

    def ranking(self, query_id: int, *, largest: bool = True) -> Ranking | None:
        """Rank a query's examples; None if it doesn't know the query."""

    def query_rows(self, query_ids: Sequence[int]) -> list[Row | None]:
        """Return the texts of queries, as in ``queries.parquet``."""

    def example_rows(self, example_ids: Sequence[int]) -> list[Row | None]:
        """Return the texts of examples, as in ``examples.parquet``."""

    def query_name(self, query_id: int) -> str | None:
        """Return a query's name; None if it has none."""

    def example_name(self, example_id: int) -> str | None:
        """Return an example's name; None if it has none."""

    def states_fact(self, query_id: int, example_id: int) -> bool | None:
        """Tell whether an example is labelled as stating the query's fact; None if it isn't labelled."""

    def history(self, query_id: int) -> History | None:
        """Return what the query's loss and its answers did; None if nobody kept a ledger or asked."""

    def sample_texts(self) -> Sequence[str]:
        """Return some of the examples' texts."""


class StoreSource:
    """One kind of scores of a score store.

    Args:
        store: The store.
        kind: The kind; default: the one to rank by, see :func:`ranking_kind`.
        name: How it is called beside others; default: the folder's name.
    """

    is_complete = True

    def __init__(self, store: ScoreStore, kind: str | None = None, name: str = "") -> None:
        self.store = store
        self.kind = ranking_kind(store, kind)
        self.name = name or store.path.resolve().name
        self._column: tuple[int, np.ndarray] | None = None

    @cached_property
    def query_ids(self) -> Sequence[int]:
        """Ids of the queries, in the store's order."""
        return [int(query) for query in self.store.query_ids]

    def doubts(self) -> Sequence[str]:
        """Return what the manifest says against the scores."""
        return self.store.doubts(self.kind)

    def ranking(self, query_id: int, *, largest: bool = True) -> Ranking | None:
        """Rank a query's examples in the order of ``store.top``; None if the store doesn't know the query."""
        if query_id not in self.query_ids:
            return None
        if self._column is None or self._column[0] != query_id:
            self._column = (query_id, self.store.scores(query_id, self.kind))
        return Ranking(self.store.example_ids, self._column[1], largest=largest)

    def query_rows(self, query_ids: Sequence[int]) -> list[Row | None]:
        """Return the texts of queries; None where there are none."""
        texts = self.store.queries
        return [None] * len(query_ids) if texts is None else list(texts.rows(query_ids))

    def example_rows(self, example_ids: Sequence[int]) -> list[Row | None]:
        """Return the texts of examples; None where there are none."""
        texts = self.store.examples
        return [None] * len(example_ids) if texts is None else list(texts.rows(example_ids))

    def query_name(self, query_id: int) -> str | None:
        """Return a query's name, if ids were made from names."""
        names = self.store.query_names
        return None if names is None else _name(names, np.flatnonzero(self.store.query_ids == query_id), query_id)

    def example_name(self, example_id: int) -> str | None:
        """Return an example's name, if ids were made from names."""
        names, ids = self.store.example_names, self.store.example_ids
        if names is None:
            return None
        place = int(np.searchsorted(ids, example_id))
        return _name(names, [place] if place < len(ids) and ids[place] == example_id else [], example_id)

    def states_fact(self, query_id: int, example_id: int) -> bool | None:
        """Return None: a store has no labels beside its texts."""
        return None

    def history(self, query_id: int) -> History | None:
        """Return what the store's ledger and its record of answers say of a query; None if they say nothing."""
        losses, answered = self._losses(query_id), self._answered.get(query_id, NEVER_ASKED)
        return None if losses is None and answered.state == "unknown" else History(losses, answered)

    def _losses(self, query_id: int) -> tuple[float, float] | None:
        """Return the first and the last loss of a query that the ledger knows."""
        ledger = self.store.ledger
        if ledger is None or query_id not in ledger.query_ids:
            return None
        column = int(np.flatnonzero(ledger.query_ids == query_id)[0])
        losses, next_losses = (ledger[name][:, column] for name in ("loss", "next_loss"))
        known = np.flatnonzero(np.isfinite(losses) & np.isfinite(next_losses))
        return (float(losses[known[0]]), float(next_losses[known[-1]])) if len(known) else None

    @cached_property
    def _answered(self) -> dict[int, Answered]:
        return {} if self.store.answers is None else self.store.answers.states()

    def sample_texts(self) -> Sequence[str]:
        """Return texts of the first examples that have one."""
        if self.store.examples is None:
            return []
        table = next(self.store.examples.tables(), None)
        if table is None:
            return []
        step = sample_step(len(table))
        texts: list[str] = table["text"].to_pylist()[::step]
        return texts


def ranking_kind(store: ScoreStore, kind: str | None = None) -> str:
    """Return the kind of scores to rank by.

    Args:
        store: The store. If it has a single kind, that is it.
        kind: The kind that was asked for; default: "learning", or "dot", or the first that there is.

    Raises:
        ValueError: If the store has several kinds, and not this one; or none at all.
    """
    if not store.kinds:
        raise ValueError(f"{store.path}: expected scores of at least one kind, found none. Write the store anew")
    if len(store.kinds) == 1 or kind is None:
        return next((known for known in ("learning", "dot") if known in store.kinds), store.kinds[0])
    if kind not in store.kinds:
        raise ValueError(f"{store.path}: expected one of the kinds {', '.join(store.kinds)}, found {kind!r}")
    return kind


def id_of(name: int | str) -> int:
    """Return the id of an example or query that may be called by a name; 17 is "17".

    Raises:
        ValueError: If it is a number that exceeds 64 bits.
    """
    if isinstance(name, str) and re.fullmatch(r"0|-?[1-9][0-9]{0,18}", name) and -(2**63) <= int(name) < 2**63:
        return int(name)
    if not isinstance(name, str) and not -(2**63) <= name < 2**63:
        raise ValueError(
            f'expected ids from -2^63 to 2^63 - 1, found {name}. Write it as text, "{name}": it is then a name'
        )
    return stable_id(name) if isinstance(name, str) else int(name)


def _name(names: np.ndarray, places: Sequence[int] | np.ndarray, known_id: int) -> str | None:
    name = str(names[places[0]]) if len(places) else str(known_id)
    return None if name == str(known_id) else name
