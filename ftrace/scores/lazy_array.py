"""The array behind a labelled one: it reads the blocks that xarray asks for. Imported only where xarray is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from xarray.backends import BackendArray
from xarray.core import indexing

from ftrace.scores.stored_scores import StoredScores
from ftrace.scores.sums import Sum


def as_lazy(store: StoredScores, keys: Sequence[Sequence[Sum]], dtype: np.dtype, *, parted: bool) -> Any:
    """Make the array of a store's matrices, ``[kinds, N, Q]`` or ``[kinds, N, Q, parts]``; nothing is read yet.

    Args:
        store: The scores.
        keys: Of each kind, its parts; the kind itself if it is whole.
        dtype: Of the array.
        parted: Whether the last dimension is there.
    """
    return indexing.LazilyIndexedArray(_StoredArray(store, keys, dtype, parted=parted))


class _StoredArray(BackendArray):
    """A store's matrices, stacked."""

    def __init__(self, store: StoredScores, keys: Sequence[Sequence[Sum]], dtype: np.dtype, *, parted: bool) -> None:
        self._store, self._keys, self._parted = store, keys, parted
        self.dtype = dtype
        sizes = (store.manifest["num_examples"], store.manifest["num_queries"])
        self.shape = (len(keys), *sizes, *([len(keys[0]) if keys else 0] if parted else []))

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        """Read a block.

        Args:
            key: For each dimension a position, which drops it, a slice or an array of positions.
        """
        which_kinds, examples, queries = key[:3]
        which_parts = key[3] if self._parted else 0
        kinds = np.atleast_1d(np.arange(self.shape[0])[which_kinds])
        parts = np.atleast_1d(np.arange(self.shape[3] if self._parted else 1)[which_parts])
        sizes = [_length(index, size) for index, size in zip((examples, queries), self.shape[1:3], strict=True)]
        block = np.empty((len(kinds), *(size for size in sizes if size is not None), len(parts)), self.dtype)
        for row, kind in enumerate(kinds):
            for column, part in enumerate(parts):
                block[row, ..., column] = self._scores(self._keys[kind][part], examples, queries)
        block = block[..., 0] if isinstance(which_parts, int | np.integer) else block
        return block[0] if isinstance(which_kinds, int | np.integer) else block

    def _scores(self, key: Sum, examples: Any, queries: Any) -> np.ndarray:
        if self._store.has_candidates:
            places = np.arange(self.shape[2])[queries]
            if not isinstance(places, np.ndarray):
                return self._store.column(int(places), key)[examples]
            columns = [self._store.column(int(place), key)[examples] for place in places]
            size = _length(examples, self.shape[1])
            return np.stack(columns, -1) if columns else np.empty((*([] if size is None else [size]), 0))
        values = self._store.values(key)
        if isinstance(examples, np.ndarray) and isinstance(queries, np.ndarray):
            return values[np.ix_(examples, queries)]
        return values[examples, queries]


def _length(index: Any, size: int) -> int | None:
    """Count what an index picks of a dimension; None for a position, which drops it."""
    if isinstance(index, slice):
        return len(range(*index.indices(size)))
    return len(index) if isinstance(index, np.ndarray) else None
