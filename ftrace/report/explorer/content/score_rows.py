"""The scores of some examples for all queries of a report, read block by block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ftrace.scores import Sum
from ftrace.scores.ids import ascending_order, places_of
from ftrace.views import Source, StoreSource


def score_rows(source: Source, query_ids: Sequence[int], ids: np.ndarray) -> np.ndarray:
    """Read the scores of some examples.

    Args:
        source: The method, which ranks all examples.
        query_ids: The queries, ``[Q]``.
        ids: Ids of the examples, ``[n]``.

    Returns:
        ``[n, Q]``; NaN where an example is not ranked for a query.
    """
    if isinstance(source, StoreSource) and not source.store.has_candidates:
        return _of_store(source, query_ids, ids)
    rows = np.full((len(ids), len(query_ids)), np.nan)
    for column, query_id in enumerate(query_ids):
        ranking = source.ranking(query_id)
        if ranking is not None and len(ranking):
            places = places_of(ids, ranking.ids, ascending_order(ranking.ids))
            rows[:, column] = np.where(places >= 0, ranking.scores[places], np.nan)
    return rows


def _of_store(source: StoreSource, query_ids: Sequence[int], ids: np.ndarray) -> np.ndarray:
    store = source.store
    places = places_of(ids, store.example_ids, ascending_order(store.example_ids))
    columns = places_of(np.asarray(query_ids, np.int64), store.query_ids, ascending_order(store.query_ids))
    rows = np.full((len(query_ids), len(ids)), np.nan, store.dtype_of(source.kind))
    for row, column in enumerate(columns.tolist()):
        if column >= 0:  # one query's scores are contiguous on disk
            rows[row] = store.column(column, Sum(source.kind), places)
    rows[:, places < 0] = np.nan
    rows[~np.isfinite(rows)] = np.nan
    return np.ascontiguousarray(rows.T)
