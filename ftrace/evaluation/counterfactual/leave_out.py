"""The effect on a query of leaving a method's strongest examples out of training.

For each query, a method's top k examples are left out, or all rows that state one of the facts of its top k. If they
taught the model the query's fact, the query's loss rises and its answer's probability falls. For comparison, equally
many random rows (or facts) and ground-truth proponents are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ftrace.evaluation.counterfactual.lds import TRUTH
from ftrace.evaluation.queries import EvaluatedQueries
from ftrace.evaluation.stores import check_store, row_name
from ftrace.scores import ScoreStore

RANDOM = "random"


@dataclass(frozen=True)
class LeftOut:
    """The examples that are left out for one row of a table, query by query.

    Args:
        row: Name of the row.
        examples: For each query, the ids of the training rows that are left out, ascending.
    """

    row: str
    examples: tuple[np.ndarray, ...]


def plan_top(
    stores: Mapping[str, ScoreStore], queries: EvaluatedQueries, num_examples: int, k: int, seed: int = 0
) -> list[LeftOut]:
    """Leave out the top k examples; of the ground-truth proponents, k random ones, or all if there are fewer.

    Args:
        stores: Stores by the name of their rows.
        num_examples: Number of training rows.
        k: Number of rows to leave out.
        seed: Seed of random rows.

    Raises:
        ValueError: If k is not between 1 and one less than all, or a store lacks queries or training rows.
    """
    return [LeftOut(row, tuple(examples)) for row, examples in _top(stores, queries, num_examples, k, seed).items()]


def plan_facts(
    stores: Mapping[str, ScoreStore], queries: EvaluatedQueries, facts: Sequence[Sequence[str]], k: int, seed: int = 0
) -> list[LeftOut]:
    """Leave out all rows that state a fact of the top k examples.

    Args:
        stores: Stores by the name of their rows.
        facts: For each training row, the facts that it states.
        k: Number of top examples whose facts are left out.
        seed: Seed of random rows.

    Raises:
        ValueError: As :func:`plan_top`.
    """
    rows_of: dict[str, list[int]] = {}
    for row, of_row in enumerate(facts):
        for fact in of_row:
            rows_of.setdefault(fact, []).append(row)

    def with_same_facts(examples: np.ndarray) -> np.ndarray:
        stated = {fact for example in examples.tolist() for fact in facts[example]}
        rows = [row for fact in stated for row in rows_of[fact]]
        return np.unique(np.array([*examples.tolist(), *rows], dtype=np.int64))

    top = _top(stores, queries, len(facts), k, seed)
    return [LeftOut(row, tuple(map(with_same_facts, examples))) for row, examples in top.items()]


def _top(
    stores: Mapping[str, ScoreStore], queries: EvaluatedQueries, num_examples: int, k: int, seed: int
) -> dict[str, list[np.ndarray]]:
    """Return each row's top k examples of each query, those of random rows and ground-truth proponents included."""
    if not 1 <= k < num_examples:
        raise ValueError(f"k: expected 1 to {num_examples - 1} of {num_examples} training rows to leave out, found {k}")
    examples: dict[str, list[np.ndarray]] = {}
    query_ids = queries.query_ids.tolist()
    for name, store in stores.items():
        check_store(store, queries.query_ids, num_examples)
        for kind in store.kinds:
            examples[row_name(name, kind)] = [np.sort(store.top(query, k, kind)[0]) for query in query_ids]
    orders = [np.random.default_rng([seed, query]).permutation(num_examples) for query in query_ids]
    examples[TRUTH] = [
        np.sort(order[np.isin(order, of_query)][:k]) for order, of_query in zip(orders, queries.proponents, strict=True)
    ]
    examples[RANDOM] = [np.sort(order[:k]) for order in orders]
    return examples


def effects(
    before: np.ndarray, after: np.ndarray, left_out: LeftOut, queries: EvaluatedQueries
) -> dict[str, np.ndarray]:
    """Compute the effects of leaving examples out, query by query.

    Args:
        before: Each query's loss with all examples, in nats, ``[Q]``.
        after: Its loss without the examples, in nats, ``[Q]``.
        left_out: The examples that were left out.

    Returns:
        ``rise`` of the loss in nats, ``fall`` of the answer's probability, number of ``rows`` left out, and share of
        the query's ground-truth ``proponents`` among them, each ``[Q]``. A query with a loss that is NaN or infinite,
        such as that of a training that diverged, has NaN in all four.
    """
    before, after = before.astype(float), after.astype(float)
    is_known = np.isfinite(before) & np.isfinite(after)
    before, after = np.where(is_known, before, np.nan), np.where(is_known, after, np.nan)
    shares = [
        np.isin(of_query, examples).mean()
        for of_query, examples in zip(queries.proponents, left_out.examples, strict=True)
    ]
    return {
        "rise": after - before,
        "fall": np.exp(-before) - np.exp(-after),
        "rows": np.where(is_known, [len(examples) for examples in left_out.examples], np.nan),
        "proponents": np.where(is_known, shares, np.nan),
    }
