"""The queries that are evaluated, and their split into a development half and a report half.

Two queries of one fact (one for each of its entities) are hardly two observations, so the unit of the split, as of
resampling, is the fact and not the query.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ftrace.arguments import Positive, Seed, checked

Half = Literal["all", "development", "report"]


@dataclass(frozen=True)
class EvaluatedQueries:
    """Queries, their facts, and the examples that state these facts.

    Args:
        query_ids: ``[Q]`` int64.
        proponents: Each query's ground-truth proponents, ids of examples, ascending.
        facts: The fact that each query asks for.
        is_development: Whether choices may be made on each query, ``[Q]`` bool; the others are for reporting.
        description: Which queries these are, in words.
        without_proponents: Number of queries left out because no example states their fact.
        data: Fingerprint of the data set; equal keys of facts in different data sets are different facts.

    Example:
        >>> queries = EvaluatedQueries.of({4: [1, 2], 5: [2], 6: []}, {4: "r0-e1-e2", 5: "r0-e1-e2", 6: "r0-e3-e4"})
        >>> queries.query_ids.tolist(), queries.without_proponents, len(set(queries.is_development.tolist()))
        ([4, 5], 1, 1)
    """

    query_ids: np.ndarray
    proponents: tuple[np.ndarray, ...]
    facts: tuple[str, ...]
    is_development: np.ndarray
    description: str
    without_proponents: int = 0
    data: str = ""

    @classmethod
    def of(
        cls,
        proponents: Mapping[int, Sequence[int] | np.ndarray],
        facts: Mapping[int, str | None] | None = None,
        description: str = "all",
        seed: int = 0,
        data: str = "",
    ) -> EvaluatedQueries:
        """Take a data set's queries; those without ground-truth proponents are left out and counted.

        Args:
            proponents: For each query's id, the ids of its ground-truth proponents.
            facts: For each query's id, the fact that it asks for; a query without one counts as a fact of its own.
            description: Which queries these are, in words.
            seed: Seed of the split into halves.
            data: Fingerprint of the data set.
        """
        kept = [query for query, of_query in proponents.items() if len(of_query)]
        of_facts = {query: (facts or {}).get(query) or f"query {query}" for query in proponents}
        development = development_facts(of_facts.values(), seed)
        return cls(
            np.array(kept, dtype=np.int64),
            tuple(np.unique(np.asarray(proponents[query], dtype=np.int64)) for query in kept),
            tuple(of_facts[query] for query in kept),
            np.array([of_facts[query] in development for query in kept], dtype=bool),
            description,
            len(proponents) - len(kept),
            data,
        )

    def __len__(self) -> int:
        return len(self.query_ids)

    def where(self, mask: np.ndarray, description: str | None = None) -> EvaluatedQueries:
        """Select the queries for which ``mask``, ``[Q]`` bool, is true."""
        kept = np.flatnonzero(mask)
        return replace(
            self,
            query_ids=self.query_ids[kept],
            proponents=tuple(self.proponents[index] for index in kept),
            facts=tuple(self.facts[index] for index in kept),
            is_development=self.is_development[kept],
            description=description or self.description,
        )

    def among(self, query_ids: Collection[int], description: str) -> EvaluatedQueries:
        """Select the queries with these ids."""
        return self.where(np.isin(self.query_ids, list(query_ids)), description)

    def in_half(self, half: Half) -> np.ndarray:
        """Tell which queries are in a half, ``[Q]`` bool."""
        return {
            "all": np.ones(len(self), bool),
            "development": self.is_development,
            "report": ~self.is_development,
        }[half]


def development_facts(facts: Iterable[str], seed: int) -> set[str]:
    """Draw half of the facts (the smaller half of an odd number) by a hash of seed and fact.

    So a fact is in the same half in all runs on one data set.
    """
    drawn = sorted(set(facts), key=lambda fact: hashlib.sha256(f"{seed} {fact}".encode()).digest())
    return set(drawn[: len(drawn) // 2])


def relation_of(fact: str) -> str:
    """Return the relation of a fact, with which its key begins.

    Example:
        >>> relation_of("r3-e1-e2"), relation_of("P361,Q48,Q771405"), relation_of("query 5")
        ('r3', 'P361', 'query')
    """
    return "query" if re.fullmatch(r"query -?\d+", fact) else fact.split("," if "," in fact else "-")[0]


@checked
def seeded_sample(query_ids: Sequence[int], count: Positive, seed: Seed) -> list[int]:
    """Draw ``count`` queries by a seeded shuffle, and return them in their original order.

    Raises:
        ValueError: If ``count`` is below 1.
    """
    ordered = np.sort(np.asarray(query_ids, dtype=np.int64))
    drawn = set(np.random.default_rng(seed).permutation(ordered)[:count].tolist())
    return [query for query in query_ids if query in drawn]
