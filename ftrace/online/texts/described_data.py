"""Texts in a data set of the user's, which is read when the store is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from torch.utils.data import DataLoader

from ftrace.online.texts.shown_values import shown, shown_columns
from ftrace.online.undisturbed.random_state import isolated_random_state
from ftrace.scores import Texts
from ftrace.scores.text_tables import first_rows, joined, text_table

_ROWS_AT_A_TIME = 10_000
_REMEDY = 'Give rows such as {"example_id": 3, "text": "..."}'


class DescribedData:
    """A data set whose rows have an id and a text.

    Args:
        source: A data set of Hugging Face, any map-style data set or list of rows, anything to iterate over rows, a
            table of arrow or pandas, or texts.
        keys: For what the rows may be of, "example_id" or "query_id", the names that its ids may have.
        name: Its name, for messages.

    Raises:
        ValueError: If it is something else.
    """

    def __init__(self, source: Any, keys: Mapping[str, Sequence[str]], name: str) -> None:
        self._keys = keys
        self._name = name
        if isinstance(source, str | bytes | Mapping | Iterator | DataLoader) or not _has_rows(source):
            remedy = {
                str: "Of a file, pass list(ftrace.data.read_texts(file)[1])",
                DataLoader: "Pass its dataset, whose rows are no batches",
            }
            chosen = next((text for kind, text in remedy.items() if isinstance(source, kind)), _REMEDY)
            raise ValueError(
                f"{name}: expected a function of a batch, or a data set of rows that can be read again, found "
                f"{_shown(source)}. {chosen}"
            )
        self._source = source

    def check(self) -> None:
        """Make sure that the first row has an id and a text.

        Raises:
            ValueError: If it lacks one, or it is not known whether it is an example's or a query's.
        """
        table = _head(self._source)
        if table is not None:
            columns = shown_columns(table.schema)
        else:
            with isolated_random_state():
                row = next(iter(_rows(self._source)), None)
            if row is None:
                raise ValueError(f"{self._name}: expected rows, found none. {_REMEDY}")
            if not isinstance(row, Mapping):
                raise ValueError(f"{self._name}: expected rows that are dictionaries, found {_shown(row)}. {_REMEDY}")
            columns = list(row)
            if not isinstance(row.get("text", ""), str):
                raise ValueError(f"{self._name}: expected texts under 'text', found {_shown(row['text'])}")
        given = [key for names in self._keys.values() if (key := _first_in(names, columns))]
        wanted = [names[0] for names in self._keys.values()]
        if not given or "text" not in columns:
            raise ValueError(
                f"{self._name}: expected rows with {' or '.join(map(repr, wanted))} and 'text', found {columns}. "
                f"{_REMEDY}"
            )
        if len(given) > 1:
            raise ValueError(
                f"{self._name}: expected rows with either {' or '.join(map(repr, given))}, found both. Pass two data "
                "sets: describe=(examples, queries)"
            )

    def read(self, wanted: Mapping[str, np.ndarray]) -> dict[str, pa.Table]:
        """Read the rows of some ids; of an id that several rows have, the first.

        Args:
            wanted: For "example_id" and "query_id", the ids.

        Raises:
            ValueError: If a row lacks its id or its text, or a column has values of several types.
        """
        table = _table(self._source)
        parts: dict[str, list[pa.Table]] = {kind: [] for kind in self._keys}
        with isolated_random_state():
            for chunk in self._chunks() if table is None else [table]:
                for kind, names in self._keys.items():
                    parts[kind] += _of_kind(chunk, kind, names, wanted[kind])
        return {kind: first_rows(joined(tables), kind) for kind, tables in parts.items() if tables}

    def _chunks(self) -> Iterator[list[Any]]:
        rows = _rows(self._source)
        while chunk := list(islice(rows, _ROWS_AT_A_TIME)):
            for row in chunk:
                if not isinstance(row, Mapping) or not any(_first_in(names, row) for names in self._keys.values()):
                    found = f"keys {list(row)}" if isinstance(row, Mapping) else _shown(row)
                    wanted = " or ".join(repr(names[0]) for names in self._keys.values())
                    raise ValueError(f"{self._name}: expected rows with {wanted}, found {found}. {_REMEDY}")
            yield chunk


def _of_kind(chunk: Any, kind: str, names: Sequence[str], ids: np.ndarray) -> list[pa.Table]:
    """Return the rows of a chunk that have an id of this kind, in a table; none, if no row has."""
    if isinstance(chunk, pa.Table):
        key = _first_in(names, chunk.column_names)
        return [] if key is None else [text_table(_renamed(chunk, key, kind), kind, ids)]
    tables = []
    for key in names:
        rows = [row for row in chunk if _first_in(names, row) == key]
        if rows:
            tables.append(_renamed(text_table(map(shown, rows), key, ids), key, kind))
    return tables


def _renamed(table: pa.Table, key: str, kind: str) -> pa.Table:
    if key == kind:
        return table
    others = table.drop_columns([kind]) if kind in table.column_names else table
    return others.rename_columns({key: kind})


def _first_in(names: Sequence[str], columns: Iterable[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _has_rows(source: Any) -> bool:
    return isinstance(source, Texts) or hasattr(source, "__iter__") or hasattr(source, "__getitem__")


def _rows(source: Any) -> Iterator[Any]:
    if isinstance(source, Texts):
        return (row for table in source.tables() for row in table.to_pylist())
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return (source[index] for index in range(len(source)))
    return iter(source)


def _head(source: Any) -> pa.Table | None:
    """Return the first row as a table, if the source is one of columns."""
    if _is_of(source, "datasets") and hasattr(source, "__getitem__"):
        head: pa.Table = source.with_format("arrow")[:1]
        return head
    if _is_of(source, "pandas"):
        return _table(source[:1])
    return source.slice(0, 1) if isinstance(source, pa.Table) else None


def _table(source: Any) -> pa.Table | None:
    """Return a source of columns as a table of those that a person reads; None if it has rows instead."""
    table = source if isinstance(source, pa.Table) else None
    if _is_of(source, "datasets") and hasattr(source, "__getitem__"):
        names = shown_columns(source.with_format("arrow")[:1].schema)
        table = source.select_columns(names).with_format("arrow")[:]
    elif _is_of(source, "pandas"):
        table = pa.Table.from_pandas(source, preserve_index=False)
    return None if table is None else table.select(shown_columns(table.schema))


def _is_of(source: Any, package: str) -> bool:
    """Whether an object is of a package, which need not be installed."""
    return type(source).__module__.split(".")[0] == package


def _shown(value: Any) -> str:
    return f"the text {value!r:.60}" if isinstance(value, str) else type(value).__name__
