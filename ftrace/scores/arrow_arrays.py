"""Columns of Arrow as arrays of NumPy, and back, without pandas, whose import takes longer than reading a store."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

_PLAIN = (pa.types.is_int64, pa.types.is_float64)


def as_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as an array; nulls become what pyarrow makes of them.

    Example:
        >>> as_numpy(pa.chunked_array([as_arrow(np.array([3, 5])), as_arrow(np.array([8]))]))
        array([3, 5, 8])
    """
    if column.null_count or not any(is_plain(column.type) for is_plain in _PLAIN):
        values: np.ndarray = column.to_numpy()
        return values
    dtype = np.dtype("int64") if pa.types.is_int64(column.type) else np.dtype("float64")
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype, len(chunk), chunk.offset * dtype.itemsize)
        for chunk in column.chunks
        if len(chunk)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype), *parts])


def as_arrow(values: np.ndarray) -> pa.Array:
    """Return whole numbers, ``[N]``, as an array of Arrow."""
    integers = np.ascontiguousarray(values, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(integers), [None, pa.py_buffer(integers)])


def rows_of(table: pa.Table, key: str, ids: np.ndarray) -> pa.Table:
    """Select the rows of some ids.

    Args:
        table: Any.
        key: The column of ids.
        ids: Whose rows are wanted, in any order.
    """
    import pyarrow.compute  # takes as long to be imported as the rest of pyarrow

    return table.filter(pyarrow.compute.is_in(table[key], value_set=pa.array(np.unique(ids))))
