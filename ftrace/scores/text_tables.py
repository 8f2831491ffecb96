"""Tables of texts, made of rows of any kind: :class:`ftrace.scores.Texts` writes them, and reads them again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from ftrace.scores.arrow_arrays import rows_of
from ftrace.scores.ids import as_ids, stable_id

ROWS_OF_A_GROUP = 10_000

Rows: TypeAlias = Iterable[Mapping[str, Any]] | pa.Table


def text_table(rows: Rows, key: str, ids: np.ndarray | None = None) -> pa.Table:
    r"""Make a table of texts: numbers under the key, a text in each row, and any further columns.

    Args:
        rows: Rows with an id and a text, as mappings, or a table of such columns. An id that is a name becomes a number
            by :func:`ftrace.scores.stable_id`, and the name becomes the column ``name``. Of a mapping's values, texts,
            numbers and lists of them are kept; other values, such as tensors, are left out. Half of a surrogate pair,
            which no file can hold, becomes an escape such as ``\ud83d``.
        key: The column of the ids.
        ids: The ids whose rows are kept, in any order; default: all.

    Returns:
        The table, whose first columns are the ids and the texts.

    Raises:
        ValueError: If a row lacks the id or the text, or a column holds values of several types.
    """
    if isinstance(rows, pa.Table):
        return _normal(rows, key, ids)
    iterator, tables = iter(rows), []
    while chunk := list(islice(iterator, ROWS_OF_A_GROUP)):
        tables.append(_normal(_table(chunk), key, ids))
    if not tables:
        return pa.table({key: pa.array([], pa.int64()), "text": pa.array([], pa.string())})
    return joined(tables)


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Put tables one below the other; a column that one of them lacks is null there.

    Raises:
        ValueError: If a column is of one type in one table, and of another in another.
    """
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"texts: expected columns of one type each, found others ({error})") from error


def first_rows(table: pa.Table, key: str) -> pa.Table:
    """Return the first row of each id, in ascending order of ids."""
    _, places = np.unique(table[key].to_numpy(), return_index=True)
    return table.take(pa.array(places))


def _normal(table: pa.Table, key: str, ids: np.ndarray | None) -> pa.Table:
    """Make ids numbers, and put them and the texts before all other columns."""
    missing = [name for name in (key, "text") if name not in table.column_names]
    if missing:
        raise ValueError(f"texts: expected the columns {key!r} and 'text', found {table.column_names}")
    if not pa.types.is_integer(table.schema.field(key).type):
        given = table[key].to_pylist()
        if "name" not in table.column_names:
            names = [name if isinstance(name, str) else None for name in given]
            table = table.append_column("name", pa.array(names, pa.string()))
        numbers = as_ids([stable_id(name) if isinstance(name, str) else name for name in given], key)
    else:
        numbers = as_ids(table[key].to_numpy(), key)
    table = table.set_column(table.column_names.index(key), key, pa.array(numbers))
    if ids is not None:
        table = rows_of(table, key, ids)
    if table["text"].null_count:
        raise ValueError(f"texts: expected a text in each row, found {table['text'].null_count} rows without one")
    if not pa.types.is_string(table["text"].type) and not pa.types.is_large_string(table["text"].type):
        raise ValueError(f"texts: expected texts under 'text', found {table['text'].type}. Make them text with str()")
    return table.select([key, "text", *(name for name in table.column_names if name not in (key, "text"))])


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    strange = next((row for row in rows if not isinstance(row, Mapping)), None)
    if strange is not None:
        raise ValueError(f"texts: expected rows that map names of columns to values, found {strange!r:.80}")
    plain = [{name: value for name, value in map(_plain, row.items()) if value is not None} for row in rows]
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for row in plain for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in plain])
        except (pa.ArrowException, OverflowError) as error:
            raise ValueError(f"texts: expected columns of one type each, found others in {name!r} ({error})") from error
    return pa.table(columns)


def _plain(item: tuple[str, Any]) -> tuple[str, Any]:
    """Return a column's name and value as Python's own types; None for a value that is no text and no number."""
    name, value = item
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, list | tuple):
        values = [_plain((name, element))[1] for element in value]
        return name, None if any(element is None or isinstance(element, list) for element in values) else values
    if isinstance(value, str):
        return name, value.encode("utf-8", "backslashreplace").decode()
    return name, value if isinstance(value, bool | int | float) else None
