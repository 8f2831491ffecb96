"""Matrices of scores that are read and written by ranges of rows, so that they are never copied as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ftrace.files.reserved import reserve

RANGE_BYTES = 16 * 2**20


class ScoreRows(Protocol):
    """A matrix of which rows are asked for; every array is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, Q)``, or ``(pairs,)``."""

    @property
    def dtype(self) -> np.dtype:
        """The type of its numbers."""

    def __getitem__(self, rows: Any, /) -> Any:
        """Copy the rows at some positions."""


def row_ranges(scores: ScoreRows, order: np.ndarray | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Read all rows, a range at a time.

    Args:
        scores: The matrix.
        order: The positions to read, in their order; default: all.

    Yields:
        The number of rows before the range, and the range's rows.
    """
    order = np.arange(scores.shape[0]) if order is None else order
    step = max(1, RANGE_BYTES // (max(1, math.prod(scores.shape[1:])) * scores.dtype.itemsize))
    for start in range(0, len(order), step):
        yield start, np.asarray(scores[order[start : start + step]])


def write_in_columns(file: Path, scores: ScoreRows, order: np.ndarray, dtype: Any) -> None:
    """Write a matrix as ``.npy`` in Fortran order, in which a column is contiguous.

    Args:
        file: The file, which is made.
        scores: ``[N, Q]`` or ``[pairs]``.
        order: ``[N]``, the positions of its rows in the file's order.
        dtype: The type of the file's numbers.

    Raises:
        OSError: If the disk is full.
    """
    dtype, shape = np.dtype(dtype), (len(order), *scores.shape[1:])
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": len(shape) > 1, "shape": shape}
    with file.open("w+b") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        begin = stream.tell()
        reserve(stream, begin + math.prod(shape) * dtype.itemsize)
        for start, rows in row_ranges(scores, order):
            columns = np.ascontiguousarray(rows.reshape(len(rows), -1).T, dtype)
            for number, column in enumerate(columns):
                stream.seek(begin + (number * len(order) + start) * dtype.itemsize)
                stream.write(column.data)
