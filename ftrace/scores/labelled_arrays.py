"""Scores for xarray: kinds x examples x queries under one roof, of which only what is asked for is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ftrace.scores.optional import import_xarray
from ftrace.scores.stored_scores import StoredScores
from ftrace.scores.sums import Sum

if TYPE_CHECKING:
    import xarray as xr


def labelled_array(store: StoredScores, axis: str | None = None) -> xr.DataArray:
    """Label all scores of a store; :meth:`ScoreStore.to_xarray` says how.

    Args:
        store: The scores.
        axis: What they are broken down by; None: they are whole.

    Raises:
        ImportError: If xarray is not installed.
        ValueError: If scores are not broken down by this axis.
    """
    xarray = import_xarray()
    from ftrace.scores.lazy_array import as_lazy

    parts = [""]
    if axis is not None:
        store.check_axis(axis)
        parts = store.breakdown[axis]
    kinds = [kind for kind in store.kinds if axis is None or axis in store.breakdown_of(kind)]
    keys = [[Sum(kind, axis or "", part) for part in parts] for kind in kinds]
    dtype = np.result_type(*map(store.dtype_of, kinds)) if kinds else np.dtype(np.float32)
    coordinates: dict[str, Any] = {"kind": kinds}
    for what, names in (("example", store.names_of_examples), ("query", store.names_of_queries)):
        labels = names.labels()
        coordinates[what] = np.array(labels)
        if labels is not names.ids:
            coordinates[f"{what}_id"] = (what, np.array(names.ids))
    dimensions = ["kind", "example", "query"]
    if axis is not None:
        dimensions.append(axis)
        coordinates[axis] = parts
    attributes = {"store": str(store.path), "method": str(store.manifest.get("method", ""))}
    doubts = [sentence for kind in kinds for sentence in store.doubts(kind)]
    if doubts:
        attributes["in doubt"] = "; ".join(doubts)
    lazy = as_lazy(store, keys, dtype, parted=axis is not None)
    return xarray.DataArray(xarray.Variable(dimensions, lazy), coords=coordinates, name="score", attrs=attributes)
