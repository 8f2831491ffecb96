"""What kind of example a query's proponent is: one that states the fact, or one that shares something with it.

Chang et al. 2024 (arXiv 2410.17413) tell attribution from influence so: examples that state a fact are often not those
that raise its probability most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from ftrace.data import FactData, FactParts

KINDS = ("states the fact", "same subject", "same object", "same relation", "other")
STATES, SUBJECT, OBJECT, RELATION, OTHER = range(len(KINDS))


def kind_of(fact: FactParts, stated: Iterable[FactParts], *, states_fact: bool = False) -> int:
    """The kind of an example that states some facts, as a place in :data:`KINDS`.

    Where several hold, the first of them counts, so an example of several facts counts by its best one. An entity is
    the same in whichever place of the other fact it stands.

    Args:
        fact: The query's.
        stated: The facts that the example states.
        states_fact: Whether the example is known to state the query's fact.

    Example:
        >>> fact, other = FactParts("r1", "e1", "e2"), FactParts("r1", "e3", "e4")
        >>> [KINDS[kind_of(fact, stated)] for stated in ([fact], [other], [other, FactParts("r2", "e5", "e1")], [])]
        ['states the fact', 'same relation', 'same subject', 'other']
    """
    return STATES if states_fact else min((_shared(fact, other) for other in stated), default=OTHER)


def _shared(fact: FactParts, other: FactParts) -> int:
    if other == fact:
        return STATES
    entities = (other.subject, other.object)
    if fact.subject in entities:
        return SUBJECT
    if fact.object in entities:
        return OBJECT
    return RELATION if other.relation == fact.relation else OTHER


class ExampleKinds:
    """Sorts examples for the queries of a data set.

    Ground-truth proponents state the fact; other examples go by the facts that the data says they state.

    Args:
        data: The data, set up.

    Raises:
        ValueError: If the data's facts have no relation, subject and object, or a query has no fact.
    """

    def __init__(self, data: FactData) -> None:
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
        found: Sequence[Sequence[str]] = self._data.train_rows["facts"]
        return found

    def of(self, query_id: int, example_ids: Iterable[int]) -> np.ndarray:
        """The kinds of some examples for a query, places in :data:`KINDS`, int64."""
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
