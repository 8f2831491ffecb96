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
    values = store.values(Sum(kind))
    size = shape[0] * shape[1] * values.itemsize
    if size > MOST_BYTES:
        raise ValueError(
            f"{store.path}: expected a table of at most {MOST_BYTES / 1e6:,.0f} MB, found {shape[0]:,} examples x "
            f"{shape[1]:,} queries, {size / 1e6:,.0f} MB. Take to_pandas(query_id, k=...) for some queries, or "
            "to_xarray(), which reads what is asked for"
        )
    if store.has_candidates:
        scores = np.empty(shape, values.dtype, order="F")
        for place in range(shape[1]):
            scores[:, place] = store.column(place, Sum(kind))
    else:
        scores = np.array(values, order="F")
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
    columns: dict[str, list[Any]] = {
        "place": [],
        "rank": [],
        "position": [],
        "share": [],
        **{k: [] for k in store.kinds},
    }
    for place in places:
        scores = store.column(place, Sum(kind))
        order = strongest(scores, k, largest=largest)
        largest_score = np.abs(scores[np.isfinite(scores)]).max(initial=0.0)
        columns["place"].append(np.full(len(order), place))
        columns["rank"].append(np.arange(1, 1 + len(order)))
        columns["position"].append(order)
        columns["share"].append(scores[order] / largest_score if largest_score else np.full(len(order), np.nan))
        for other in store.kinds:
            columns[other].append(scores[order] if other == kind else _at(store, place, Sum(other), order))
        if len(places) * len(order) > _MOST_ROWS:
            raise ValueError(
                f"{store.path}: expected at most {_MOST_ROWS:,} rows, found {len(order):,} for each of {len(places):,} "
                "queries. Ask for fewer queries, or a smaller k"
            )
    joined = {name: np.concatenate(arrays) if arrays else np.zeros(0) for name, arrays in columns.items()}
    query_ids = store.query_ids[joined.pop("place").astype(int)]
    example_ids = store.example_ids[joined.pop("position").astype(int)]
    table: dict[str, Any] = {"query_id": query_ids}
    if store.names_of_queries.are_known:
        table["query_name"] = store.query_names_of(query_ids)
    table |= {"rank": joined["rank"].astype(int), "example_id": example_ids}
    if store.names_of_examples.are_known:
        table["example_name"] = store.example_names_of(example_ids)
    table |= {f"score_{name}" if name in _OTHER_COLUMNS else name: joined[name] for name in store.kinds}
    table |= {"share": joined["share"], **_texts(store, query_ids, example_ids)}
    return pd.DataFrame(table)


def _at(store: StoredScores, place: int, key: Sum, order: np.ndarray) -> np.ndarray:
    """Read the scores of some examples."""
    return store.column(place, key)[order] if store.has_candidates else np.array(store.values(key)[order, place])


def _texts(store: StoredScores, query_ids: np.ndarray, example_ids: np.ndarray) -> dict[str, Any]:
    """Make the columns that are known from texts."""
    import pandas as pd

    nothing: list[dict[str, Any] | None] = [None] * len(example_ids)
    examples = nothing if store.examples is None else store.examples.rows(example_ids)
    unique, inverse = np.unique(query_ids, return_inverse=True)
    queries = [None] * len(unique) if store.queries is None else store.queries.rows(unique)
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
