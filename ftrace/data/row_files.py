"""Rows of JSON-lines, JSON and Parquet files, one at a time, each with its source.

A whole number is accepted wherever text is expected, since it can be written in one way only: 7 is "7".
"""

from __future__ import annotations

import difflib
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ftrace.data.json_rows import read_json_rows
from ftrace.shown_text import one_line

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
ROWS_PER_CHUNK = 100_000
_ROWS_AT_A_TIME = 10_000


@dataclass(frozen=True, slots=True)
class SourceRow:
    """Row of a file.

    Args:
        file: The file's name, for errors.
        number: The row's number from 1; in JSON lines, the line's.
        fields: The row itself, without null fields unless asked for.
    """

    file: str
    number: int
    fields: Mapping[str, Any]

    @property
    def place(self) -> str:
        """File and number of the row, for errors."""
        return f"{self.file}, row {self.number}"

    def text(self, name: str, *, empty: bool = False) -> str:
        """Return a field that must be text or a whole number.

        Raises:
            ValueError: If it is missing, neither, or empty without ``empty=True``.
        """
        if name not in self.fields:
            raise ValueError(f"{self.place}: no field {name!r}, {self.found(name)}")
        text = as_text(self.fields[name])
        if text is None:
            raise self.wrong(name, "text or a whole number")
        if not empty and not text.strip():
            raise ValueError(f"{self.place}: field {name!r}: expected text, found none in it ({text!r})")
        return text

    def texts(self, name: str, *, empty: bool = False) -> list[str]:
        """Return a field that is one text or a list of texts, each as in :meth:`text`; an empty list if it is missing.

        Raises:
            ValueError: If it is anything else, or a text is empty without ``empty=True``.
        """
        value = self.fields.get(name, [])
        texts = [as_text(item) for item in value] if isinstance(value, list) else [as_text(value)]
        if any(text is None or not (empty or text.strip()) for text in texts):
            raise self.wrong(name, "text or a list of texts")
        return [text for text in texts if text is not None]

    def wrong(self, field: str, expected: str) -> ValueError:
        """Build the error for a field that is not what was expected."""
        return ValueError(f"{self.place}: field {field!r}: expected {expected}, found {self.fields.get(field)!r:.200}")

    def found(self, *wanted: str) -> str:
        """Say which fields there are, and which of them are spelled nearly like the wanted ones."""
        near = {close for name in wanted for close in difflib.get_close_matches(name, self.fields, n=1)}
        return f"found the fields {sorted(self.fields)}" + (f"; nearest: {sorted(near)}" if near else "")


def as_text(value: Any) -> str | None:
    """Return text as it is, a whole number as text, and None for anything else.

    Example:
        >>> as_text("7"), as_text(7), as_text(7.0), as_text(True)
        ('7', '7', None, None)
    """
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def read_rows(file: Path, *, nulls: bool = False) -> Iterator[SourceRow]:
    """Yield the rows of one file, in order; memory does not grow with the file, unless it is one JSON list.

    Args:
        file: ``.jsonl`` or ``.json`` (lines of objects, or one list of them, in UTF-8; also with ``.gz``), or
            ``.parquet``.
        nulls: Keep fields that are null.

    Raises:
        ValueError: If the file can't be read, is of another kind, or a row is not an object.
    """
    if not file.name.endswith(SUFFIXES):
        raise ValueError(f"{file}: expected a file that ends in {', '.join(SUFFIXES)}")
    try:
        rows = _parquet_rows(file) if file.suffix == ".parquet" else read_json_rows(file)
        for number, row in rows:
            if not isinstance(row, dict):
                raise ValueError(f"{file}, row {number}: expected a JSON object, found {row!r:.100}")
            kept = {name: value for name, value in row.items() if nulls or value is not None}
            yield SourceRow(str(file), number, kept)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, OverflowError, pa.ArrowException) as error:
        raise ValueError(f"{file}: can't be read ({one_line(str(error))})") from error


def _parquet_rows(file: Path) -> Iterator[tuple[int, Any]]:
    with pq.ParquetFile(file.absolute()) as reader:
        batches = reader.iter_batches(batch_size=_ROWS_AT_A_TIME)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)


def write_rows(file: Path, schema: pa.Schema, rows: Iterable[Mapping[str, Any]], optional: str | None = None) -> int:
    """Write rows to a Parquet file, chunk by chunk.

    Args:
        file: The file.
        schema: All columns.
        rows: The rows, with a value for each.
        optional: A column that is left out if no row has a value in it.

    Returns:
        The number of rows.
    """
    count = 0
    iterator = iter(rows)
    left_out = optional
    while True:
        kept = schema if left_out is None else schema.remove(schema.get_field_index(left_out))
        begun = [] if not count else [pq.read_table(file)]
        with pq.ParquetWriter(file, kept) as writer:
            for table in begun:  # without the column that is needed now
                writer.write_table(
                    table.append_column(schema.field(optional), pa.nulls(count, schema.field(optional).type))
                )
            while chunk := list(islice(iterator, ROWS_PER_CHUNK)):
                if left_out is not None and any(row[left_out] is not None for row in chunk):
                    iterator, left_out = chain(chunk, iterator), None
                    break
                columns = {name: [row[name] for row in chunk] for name in kept.names}
                writer.write_table(pa.table(columns, schema=kept))
                count += len(chunk)
            else:
                return count


def hash_of_files(files: Sequence[Path], *words: str) -> str:
    """Hash the content of files, and some words, to twelve hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(words).encode())
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:12]
