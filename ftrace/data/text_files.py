"""A reader of files that give scores their texts: one row for each example, or for each query."""

from __future__ import annotations

import csv
import gzip
import os
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ftrace.arguments import Name, checked
from ftrace.data.row_files import SUFFIXES, SourceRow, read_rows

EXAMPLE_ID, QUERY_ID = "example_id", "query_id"
_CSV = (".csv", ".csv.gz")
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,20}")  # ids have 64 bits; what is longer is a name


@checked
def read_texts(file: Name | os.PathLike[Name]) -> tuple[str, Iterator[dict[str, Any]]]:
    r"""Read texts of examples or of queries, one row at a time.

    Each row has ``text`` and an id: ``example_id`` (or ``id``) or ``query_id``, a whole number or a name. All other
    fields are kept: ``answer``, ``answers``, ``fact``, ``facts``, ``proponent_ids`` and ``name`` have a meaning
    (:mod:`ftrace.scores.texts`). In CSV, an id of digits is a number, spaces separate several ``proponent_ids``, and
    an empty cell is a field that is missing.

    Args:
        file: ``.jsonl`` or ``.json`` (lines of objects, or one list of them), ``.csv`` with a line of names, each also
            with ``.gz``; or ``.parquet``.

    Returns:
        "example_id" or "query_id", and the rows. A row that is malformed is an error when it is reached.

    Raises:
        ValueError: If the file can't be read, is of another kind or has no rows; or a row lacks its id or its text.

    Example:
        >>> from tempfile import mkdtemp
        >>> file = Path(mkdtemp()) / "texts.csv"
        >>> _ = file.write_text("query_id,text,answer\n7,The capital of Norway is,Oslo\n")
        >>> key, rows = read_texts(file)
        >>> key, list(rows)
        ('query_id', [{'query_id': 7, 'text': 'The capital of Norway is', 'answer': 'Oslo'}])
    """
    path = Path(file)
    if not path.name.endswith((*SUFFIXES, *_CSV)):
        raise ValueError(f"{path}: expected a file of texts that ends in {', '.join((*SUFFIXES, *_CSV))}")
    source = _csv_rows(path) if path.name.endswith(_CSV) else read_rows(path)
    first = next(source, None)
    if first is None:
        raise ValueError(f"{path}: expected at least one row, found none")
    field = _field_of_ids(first)
    key = QUERY_ID if field == QUERY_ID else EXAMPLE_ID
    first_row = _row(first, field, key)
    return key, chain([first_row], (_row(row, field, key) for row in source))


def _field_of_ids(row: SourceRow) -> str:
    """Return the field that has the ids, which the first row decides for all."""
    fields = [name for name in (EXAMPLE_ID, QUERY_ID) if name in row.fields]
    if len(fields) == 2:
        raise ValueError(
            f'{row.place}: expected "example_id" or "query_id", found both. Put texts of examples and of queries into '
            "files of their own"
        )
    if not fields and "id" in row.fields:
        return "id"
    if not fields:
        raise ValueError(
            f'{row.place}: expected the field "example_id" or "query_id", {row.found(EXAMPLE_ID, QUERY_ID)}. Rename '
            "the field that has the ids"
        )
    return fields[0]


def _row(row: SourceRow, field: str, key: str) -> dict[str, Any]:
    if field not in row.fields:
        raise ValueError(f"{row.place}: no field {field!r}, as the first row has, {row.found(field)}")
    row_id = row.fields[field]
    if isinstance(row_id, bool) or not isinstance(row_id, int | str):
        raise row.wrong(field, "a whole number or a name")
    if "text" not in row.fields:
        raise ValueError(
            f"{row.place}: no field 'text', {row.found('text')}. Name the field 'text' that is to be shown"
        )
    text = row.text("text", empty=True)
    others = {name: value for name, value in row.fields.items() if name not in (field, "text")}
    return {key: row_id, "text": text, **others}


def _csv_rows(file: Path) -> Iterator[SourceRow]:
    """Yield the rows of a CSV file; the line of names is row 1, as in a spreadsheet."""
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rt", encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            names = next(reader, None)
            if names is None:
                return
            if len(set(names)) < len(names):
                raise ValueError(f"{file}: expected names of columns, each once, in its first line, found {names}")
            for number, cells in enumerate(reader, 2):
                if not cells:  # an empty line
                    continue
                if len(cells) != len(names):
                    raise ValueError(
                        f"{file}, row {number}: expected {len(names)} columns, as in the first line, found "
                        f'{len(cells)}. Put texts with commas, quotes or line breaks into "quotes"'
                    )
                yield SourceRow(str(file), number, _fields(names, cells))
    except csv.Error as error:
        raise ValueError(f"{file}: can't be read as CSV ({error}). Save it as JSON lines or Parquet") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: can't be read ({error})") from error


def _fields(names: list[str], cells: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {name: cell for name, cell in zip(names, cells, strict=True) if cell or name == "text"}
    for name in (EXAMPLE_ID, QUERY_ID, "id"):
        if _WHOLE_NUMBER.fullmatch(fields.get(name, "")):
            fields[name] = int(fields[name])
    proponents = str(fields.get("proponent_ids", "")).split()
    if proponents and all(map(_WHOLE_NUMBER.fullmatch, proponents)):
        fields["proponent_ids"] = [int(number) for number in proponents]
    return fields
