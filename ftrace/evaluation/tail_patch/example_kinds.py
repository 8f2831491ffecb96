"""Kinds of examples: those that state a query's fact, and those that share its subject, object or relation.

They tell attribution from influence (Chang et al. 2024, arXiv 2410.17413): the examples that state a fact are often not
those that raise its probability most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ftrace.data import FactParts, parts_of_key

if TYPE_CHECKING:
    from ftrace.data import FactTables

KINDS = ("states the fact", "same subject", "same object", "same relation", "other")
STATES, SUBJECT, OBJECT, RELATION, OTHER = range(len(KINDS))


def kind_of(fact: FactParts, stated: Iterable[FactParts], *, states_fact: bool = False) -> int:
    """Return the kind of an example that states some facts, as an index into :data:`KINDS`.

    If several kinds apply, the first one counts, so an example of several facts counts by the closest one. An entity
    counts as shared whether it is the subject or the object of the other fact.

    Args:
        fact: The query's fact.
        stated: The facts that the example states.
        states_fact: Whether the example is known to state the query's fact.

    Example:
        >>> fact, other = FactParts("r1", "e1", "e2"), FactParts("r1", "e3", "e4")
        >>> [KINDS[kind_of(fact, stated)] for stated in ([fact], [other], [other, FactParts("r2", "e5", "e1")], [])]
        ['states the fact', 'same relation', 'same subject', 'other']
    """
    return STATES if states_fact else min((_shared(fact, other) for other in stated), default=OTHER)


def _shared(fact: FactParts, other: FactParts) -> int:
    """Return the kind of an example that states only the other fact."""
    if other == fact:
        return STATES
    entities = (other.subject, other.object)
    if fact.subject in entities:
        return SUBJECT
    if fact.object in entities:
        return OBJECT
    return RELATION if other.relation == fact.relation else OTHER


def kind_by_keys(fact: str, stated: Iterable[str], *, states_fact: bool = False) -> int | None:
    """Return the kind of an example by the keys of facts alone, for data of which only the texts are known.

    Args:
        fact: Key of the query's fact.
        stated: Keys of the facts that the example states.
        states_fact: Whether the example is known to state the query's fact.

    Returns:
        An index into :data:`KINDS`; None if keys don't name relation, subject and object.

    Example:
        >>> KINDS[kind_by_keys("r1-e1-e2", ["r1-e3-e4", "r2-e5-e1"])], kind_by_keys("Norway", ["Sweden"])
        ('same subject', None)
    """
    parts, others = parts_of_key(fact), [parts_of_key(key) for key in stated]
    known = [other for other in others if other is not None]
    if parts is None or len(known) < len(others):
        return None
    return kind_of(parts, known, states_fact=states_fact)


def relation_by_key(fact: str) -> str | None:
    """Return the relation of a fact by its key alone; None if the key doesn't name it."""
    parts = parts_of_key(fact)
    return None if parts is None else parts.relation


class ExampleKinds:
    """The kinds of examples for the queries of a data set.

    Ground-truth proponents state the fact; the kinds of other examples follow from the facts that the data lists.

    Args:
        data: The data, after its setup.

    Raises:
        ValueError: If the data's facts have no relation, subject and object, or a query has no fact.
    """

    def __init__(self, data: FactTables) -> None:
        self._data = data
        rows = data.query_rows.select_columns(["query_id", "fact"])
        self._facts: dict[int, FactParts] = {}
        for query, fact in zip(rows["query_id"], rows["fact"], strict=True):
            parts = data.parts_of_fact(fact) if fact is not None else None
            if parts is None:
                raise ValueError(
                    f"examples can't be sorted by kind: expected facts of a relation, a subject and an object, and the "
                    f"keys of {type(data).__name__} don't name them (see FactData.parts_of_fact)"
                )
            self._facts[query] = parts
        self._known: dict[str, FactParts] = {}

    @cached_property
    def _stated(self) -> Sequence[Sequence[str]]:
        facts: Sequence[Sequence[str]] = self._data.train_rows["facts"]
        return facts

    def of(self, query_id: int, example_ids: Iterable[int]) -> np.ndarray:
        """Return the kinds of some examples for a query, indices into :data:`KINDS`, int64."""
        proponents = set(self._data.proponents[query_id].tolist())
        fact = self._facts[query_id]
        return np.array(
            [
                kind_of(fact, map(self._parts, self._stated[example]), states_fact=example in proponents)
                for example in map(int, example_ids)
            ],
            dtype=np.int64,
        )

    def _parts(self, fact: str) -> FactParts:
        if fact not in self._known:
            parts = self._data.parts_of_fact(fact)
            assert parts is not None
            self._known[fact] = parts
        return self._known[fact]
