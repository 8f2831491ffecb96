"""Tables of scores for pandas: all scores of a kind, or the strongest examples of queries with their texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ftrace.scores.ids import stable_id
from ftrace.scores.names import Names
from ftrace.scores.ranking import strongest
from ftrace.scores.stored_scores import StoredScores
from ftrace.scores.sums import Sum
from ftrace.scores.texts import Texts

if TYPE_CHECKING:
    import pandas as pd

MOST_BYTES = 200_000_000
_MOST_ROWS = 1_000_000
_OTHER_COLUMNS = frozenset(
    ("query_id", "query_name", "rank", "example_id", "example_name", "share", "states_fact", "text", "answer")
)


def matrix_table(store: StoredScores, kind: str) -> pd.DataFrame:
    """Make a table of all scores of a kind: a row for each example, a column for each query.

    Raises:
        ValueError: If it would be larger than :data:`MOST_BYTES`.
    """
    import pandas as pd

    shape = len(store.example_ids), len(store.query_ids)
    dtype = store.dtype_of(kind)
    size = shape[0] * shape[1] * dtype.itemsize
    if size > MOST_BYTES:
        raise ValueError(
            f"{store.path}: expected a table of at most {MOST_BYTES / 1e6:,.0f} MB, found {shape[0]:,} examples x "
            f"{shape[1]:,} queries, {size / 1e6:,.0f} MB. Take to_pandas(query_id, k=...) for some queries, or "
            "to_xarray(), which reads what is asked for"
        )
    scores = np.empty(shape, dtype, order="F")
    for place in range(shape[1]):
        scores[:, place] = store.column(place, Sum(kind))
    examples, queries = store.names_of_examples, store.names_of_queries
    return pd.DataFrame(scores, index=_index(examples, "example"), columns=_index(queries, "query"), copy=False)


def _index(names: Names, what: str) -> pd.Index:
    """Make the labels of rows or columns."""
    import pandas as pd

    labels = names.labels()
    return pd.Index(np.array(labels), name=f"{what}_id" if labels is names.ids else f"{what}_name")


def ranked_table(
    store: StoredScores, queries: Sequence[int | str], kind: str, k: int, *, largest: bool = True
) -> pd.DataFrame:
    """Make a table of the strongest examples of queries; :meth:`ScoreStore.to_pandas` says which columns it has.

    Args:
        store: The scores.
        queries: Ids or names.
        kind: The kind that examples are ranked by.
        k: How many examples of each query.
        largest: Whether proponents are listed, or opponents.

    Raises:
        KeyError: If the store has no such query.
        ValueError: If k is not a whole number from 1 on, or there would be more than a million rows.
    """
    import pandas as pd

    places = [store.place_of_query(query) for query in queries]
    orders: list[np.ndarray] = []
    shares: list[np.ndarray] = []
    of_kinds: dict[str, list[np.ndarray]] = {name: [] for name in store.kinds}
    for place in places:
        scores = store.column(place, Sum(kind))
        order = strongest(scores, k, largest=largest)
        if len(places) * len(order) > _MOST_ROWS:
            raise ValueError(
                f"{store.path}: expected at most {_MOST_ROWS:,} rows, found {len(order):,} for each of {len(places):,} "
                "queries. Ask for fewer queries, or a smaller k"
            )
        size = np.abs(scores[np.isfinite(scores)]).max(initial=0.0)
        orders.append(order)
        shares.append(scores[order] / size if size else np.full(len(order), np.nan))
        for name, columns in of_kinds.items():
            columns.append(scores[order] if name == kind else store.column(place, Sum(name), order))
    nothing = np.zeros(0, int)
    query_ids = store.query_ids[np.repeat(np.array(places, int), list(map(len, orders)))]
    example_ids = store.example_ids[np.concatenate([nothing, *orders])]
    table: dict[str, Any] = {"query_id": query_ids}
    if store.names_of_queries.are_known:
        table["query_name"] = store.query_names_of(query_ids)
    table["rank"] = np.concatenate([nothing, *(np.arange(1, 1 + len(order)) for order in orders)])
    table["example_id"] = example_ids
    if store.names_of_examples.are_known:
        table["example_name"] = store.example_names_of(example_ids)
    for name, columns in of_kinds.items():
        table[f"score_{name}" if name in _OTHER_COLUMNS else name] = np.concatenate(columns or [nothing])
    table["share"] = np.concatenate(shares or [nothing])
    return pd.DataFrame({**table, **_texts(store, query_ids, example_ids)})


def _texts(store: StoredScores, query_ids: np.ndarray, example_ids: np.ndarray) -> dict[str, Any]:
    """Make the columns that are known from texts."""
    import pandas as pd

    examples = _rows(store.examples, example_ids)
    unique, inverse = np.unique(query_ids, return_inverse=True)
    queries = _rows(store.queries, unique)
    proponents = [_proponents(row) for row in queries]
    states = [
        _states_fact(queries[which], proponents[which], example, row)
        for which, example, row in zip(inverse.tolist(), example_ids.tolist(), examples, strict=True)
    ]
    columns: dict[str, Any] = {}
    if any(state is not None for state in states):
        columns["states_fact"] = pd.array(states, dtype="boolean")
    for name in ("text", "answer"):
        if store.examples is not None and name in store.examples.columns:
            columns[name] = [None if row is None else row[name] for row in examples]
    return columns


def _rows(texts: Texts | None, ids: np.ndarray) -> Sequence[dict[str, Any] | None]:
    return [None] * len(ids) if texts is None else texts.rows(ids)


def _proponents(row: Mapping[str, Any] | None) -> set[int] | None:
    """Return the ids of the examples that state a query's fact; None if they aren't known."""
    ids = None if row is None else row.get("proponent_ids")
    return None if ids is None else {stable_id(given) if isinstance(given, str) else int(given) for given in ids}


def _states_fact(
    query: Mapping[str, Any] | None, proponents: set[int] | None, example_id: int, example: Mapping[str, Any] | None
) -> bool | None:
    """Tell whether an example states the query's fact: by its id, else by the fact's key; None if neither is known."""
    if proponents is not None:
        return example_id in proponents
    fact, facts = (query or {}).get("fact"), (example or {}).get("facts")
    return None if fact is None or facts is None else fact in facts
