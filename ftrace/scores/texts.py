"""Texts of examples and queries by id: what a person reads in place of a number.

    examples.parquet   example_id, text, answer, ...
    queries.parquet    query_id, text, answer, ...

``text`` is what the example says, or what the query asks; ``answer`` is what it teaches, or what is right. Any further
column is kept as it is. These have a meaning of their own to readers:

    name            the name of an example or a query in its source
    answers         of a query: all answers that are accepted
    said            of a query: what the model answered when training had ended
    fact            of a query: the key of the fact that it asks for
    facts           of an example: the keys of the facts that it states
    proponent_ids   of a query: the examples that state its fact

Where a list is expected, a single value is a list of one. Files are ordinary Parquet files, written in small row
groups, so that a few rows of many are read in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ftrace.files.digests import DamagedError
from ftrace.scores.arrow_arrays import as_arrow, as_numpy, rows_of
from ftrace.scores.ids import as_ids, ascending_order, is_ascending, places_of
from ftrace.scores.text_tables import ROWS_OF_A_GROUP, Rows, text_table

EXAMPLE_ID, QUERY_ID = "example_id", "query_id"
_UNREADABLE = (OSError, ValueError, OverflowError, MemoryError, pa.ArrowException)  # what a damaged file raises
_LISTS = ("answers", "facts", "proponent_ids")


class Texts:
    """Rows of text by id, read when they are asked for.

    Args:
        source: A Parquet file, or the content of one.
        key: The column of the ids, "example_id" or "query_id".

    Raises:
        ValueError: If the file can't be read, lacks the ids or the texts, or has an id twice.

    Example:
        >>> texts = Texts.of([{"example_id": 7, "text": "Oslo lies in Norway", "answer": "Oslo"}], "example_id")
        >>> texts.rows([7, 8])
        [{'example_id': 7, 'text': 'Oslo lies in Norway', 'answer': 'Oslo'}, None]
    """

    def __init__(self, source: Path | pa.Buffer, key: str) -> None:
        self.key = key
        self._name = str(source) if isinstance(source, Path) else "texts"
        try:
            self._file = pq.ParquetFile(source.absolute() if isinstance(source, Path) else pa.BufferReader(source))
        except _UNREADABLE as error:
            raise self._damaged(error) from error
        missing = [name for name in (key, "text") if name not in self.columns]
        if missing:
            raise ValueError(f"{self._name}: expected the columns {key!r} and 'text', found {self.columns}")
        self._check_texts()

    def _check_texts(self) -> None:
        """Make sure that all texts are texts, without reading them."""
        of_text = self._file.schema_arrow.field("text").type
        value_type = of_text.value_type if pa.types.is_dictionary(of_text) else of_text
        if not pa.types.is_string(value_type) and not pa.types.is_large_string(value_type):
            raise ValueError(f"{self._name}: expected texts under 'text', found {of_text}. Make them text with str()")
        metadata = self._file.metadata
        place = [metadata.schema.column(column).path for column in range(metadata.num_columns)].index("text")
        groups = (metadata.row_group(group).column(place).statistics for group in range(metadata.num_row_groups))
        nulls = sum(group.null_count for group in groups if group is not None and group.has_null_count)
        if nulls:
            raise ValueError(f"{self._name}: expected a text in each row, found {nulls} without one. Leave these out")

    @classmethod
    def of(cls, rows: Rows, key: str, ids: np.ndarray | None = None) -> Texts:
        """Make texts of rows, in memory.

        Args:
            rows: Rows with an id and a text, as mappings, or a table of such columns. An id that is a name becomes a
                number by :func:`ftrace.scores.stable_id`. Of a mapping's values, texts, numbers and lists of them are
                kept; other values, such as tensors, are left out.
            key: "example_id" or "query_id".
            ids: The ids whose rows are kept, in any order; default: all.

        Raises:
            ValueError: If a row lacks the id or the text, an id occurs twice, or a column has values of several types.
        """
        table = text_table(rows, key, ids)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=ROWS_OF_A_GROUP, compression="zstd")
        texts = cls(sink.getvalue(), key)
        _ = texts.ids  # each once
        return texts

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._file.schema_arrow.names)

    @cached_property
    def ids(self) -> np.ndarray:
        """Ids in the order of the rows, int64 ``[N]``."""
        ids = as_ids(as_numpy(self.column(self.key)), f"{self._name}: {self.key}")
        if not is_ascending(ids):
            unique, counts = np.unique(ids, return_counts=True)
            if len(unique) < len(ids):
                twice = unique[counts > 1][:3].tolist()
                raise ValueError(f"{self._name}: expected each {self.key} once, found {twice} several times")
        return ids

    @cached_property
    def _order(self) -> np.ndarray | None:
        """Positions of the rows in ascending order of ids; None if they are in that order."""
        return ascending_order(self.ids)

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def places(self, ids: np.ndarray) -> np.ndarray:
        """Find the positions of some ids in :attr:`ids`, ``[n]``; -1 for an id that has no row."""
        return places_of(ids, self.ids, self._order)

    def rows(self, ids: Sequence[int] | np.ndarray) -> list[dict[str, Any] | None]:
        """Read the rows of some ids, in their order; None for an id that has no row."""
        wanted = np.asarray(ids, np.int64)
        if not len(self) or not len(wanted):
            return [None] * len(wanted)
        places = self.places(wanted)
        rows_by_place = self._read(np.unique(places[places >= 0]))
        return [rows_by_place.get(place) for place in places.tolist()]

    def _read(self, places: np.ndarray) -> dict[int, dict[str, Any]]:
        """Read rows by their places, which ascend: only the row groups that they are in."""
        metadata = self._file.metadata
        starts = np.cumsum([0, *(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))])
        groups = np.searchsorted(starts, places, side="right") - 1
        rows: dict[int, dict[str, Any]] = {}
        for group in np.unique(groups).tolist():
            inside = places[groups == group]
            table = self._group(group).take(as_arrow(inside - starts[group]))
            rows |= dict(zip(inside.tolist(), map(_with_lists, table.to_pylist()), strict=True))
        return rows

    def _group(self, group: int) -> pa.Table:
        with self._readable():
            return self._file.read_row_group(group)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn what a damaged file raises when it is read into an error that names the file."""
        try:
            yield
        except _UNREADABLE as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DamagedError:
        return DamagedError(
            f"{self._name} is missing or damaged ({' '.join(str(error).split())}). Write the texts anew"
        )

    def column(self, name: str) -> pa.ChunkedArray:
        """Read a whole column, in the order of :attr:`ids`.

        Raises:
            ValueError: If there is no such column.
        """
        if name not in self.columns:
            raise ValueError(f"{self._name}: expected one of the columns {self.columns}, found {name!r}")
        with self._readable():
            return self._file.read([name]).column(0)

    def tables(self) -> Iterator[pa.Table]:
        """Read all rows, a row group at a time."""
        for group in range(self._file.metadata.num_row_groups):
            yield self._group(group)

    def write(self, file: Path, ids: np.ndarray | None = None) -> None:
        """Write the rows to a Parquet file.

        Args:
            file: The file, which is not yet whole while this runs.
            ids: The ids whose rows are written, in any order; default: all.
        """
        are_all = ids is None or bool(np.isin(self.ids, ids).all())
        with pq.ParquetWriter(file, self._file.schema_arrow, compression="zstd") as writer:
            for table in self.tables():
                chosen = table if ids is None or are_all else rows_of(table, self.key, ids)
                writer.write_table(chosen, row_group_size=ROWS_OF_A_GROUP)


def check_texts(examples: Texts | None, queries: Texts | None) -> None:
    """Make sure that texts are texts, and of what they are said to be.

    Raises:
        ValueError: If something else was given, such as rows, or texts of queries for those of examples.
    """
    for name, texts, key in (("examples", examples, EXAMPLE_ID), ("queries", queries, QUERY_ID)):
        if texts is not None and (not isinstance(texts, Texts) or texts.key != key):
            found = f"those with {texts.key!r}" if isinstance(texts, Texts) else type(texts).__name__
            raise ValueError(
                f"{name}: expected texts with {key!r}, found {found}. Make them with Texts.of(rows, {key!r})"
            )


def _with_lists(row: dict[str, Any]) -> dict[str, Any]:
    """Make lists of single values where readers expect lists: the letters of "Oslo" are no answers."""
    for name in _LISTS:
        value = row.get(name)
        if value is not None:
            row[name] = [each for each in value if each is not None] if isinstance(value, list) else [value]
    return row
