"""Metrics of some of the queries, and the order in which groups of queries stand in a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ftrace.evaluation.estimates import Estimate


@dataclass(frozen=True)
class QueryGroup:
    """Metrics of a group of queries.

    Args:
        by: The property that all queries of the group share, such as "relation".
        name: Its value: a relation, or a range of numbers of proponents.
        num_queries: Number of queries, in all runs.
        estimates: For each row of the table, each metric's mean and interval.
    """

    by: str
    name: str
    num_queries: int
    estimates: dict[str, dict[str, Estimate]]


def shorter_first(names: Iterable[str]) -> list[str]:
    """Sort names so that numbers in them ascend: by length, then by alphabet.

    Example:
        >>> shorter_first(["r10", "r2", "r1"])
        ['r1', 'r2', 'r10']
    """
    return sorted(names, key=lambda name: (len(name), name))
