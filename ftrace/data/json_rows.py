"""A reader of JSON files, row by row: lines of JSON, or one list over any number of lines.

JSON is UTF-8 (RFC 8259); a byte order mark at the beginning of a line is ignored. Anything else that is malformed is an
error that names file and row.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BYTE_ORDER_MARK = "\ufeff"
_NO_UTF_8 = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" makes of a byte that is not UTF-8
_MAY_BE_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_SHOWN = 100


def read_json_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a JSON file, of any type, with their numbers from 1; a line's number counts empty lines too.

    Args:
        file: Lines of JSON, or one list; compressed, if its name ends in ``.gz``.

    Raises:
        ValueError: If a row is not JSON, not UTF-8, or holds a value that can't be represented.
    """
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8", errors="surrogateescape") as lines:
        is_first = True
        for number, marked in enumerate(lines, 1):
            line = marked.removeprefix(_BYTE_ORDER_MARK)
            if not line.strip():
                continue
            start = _after_space(line, 0)
            if is_first and line.startswith("[", start):
                yield from _items(file, line + lines.read(), start + 1)
                return
            is_first = False
            row, end = _decoded(f"{file}, row {number}", line, start)
            if end < len(line):
                raise _no_json(f"{file}, row {number}", line, 0, json.JSONDecodeError("Extra data", line, end))
            yield number, row


def is_text(value: str) -> bool:
    r"""Return whether a text can be written: half of a surrogate pair is no character.

    Example:
        >>> is_text("\U0001f600"), is_text("\ud83d")
        (True, False)
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _items(file: Path, text: str, start: int) -> Iterator[tuple[int, Any]]:
    """Yield the items of the list whose bracket ends at ``start``, one at a time, so that an error names its item."""
    position, number = _after_space(text, start), 1
    goes_on = not text.startswith("]", position)
    while goes_on:
        item, end = _decoded(f"{file}, row {number}", text, position)
        yield number, item
        goes_on = text.startswith(",", end)
        if not goes_on and not text.startswith("]", end):
            raise _no_json(
                f"{file}, row {number}", text, position, json.JSONDecodeError("Expecting ',' or ']'", text, end)
            )
        position, number = (_after_space(text, end + 1), number + 1) if goes_on else (end, number)
    end = _after_space(text, position + 1)
    if end < len(text):
        raise _no_json(f"{file}, after row {number}", text, end, json.JSONDecodeError("Extra data", text, end))


def _decoded(where: str, text: str, start: int) -> tuple[Any, int]:
    """Decode the row that begins at a position; also return where the text after it begins."""
    try:
        row, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise _no_json(where, text, start, error) from error
    except RecursionError as error:
        raise ValueError(f"{where}: expected JSON, found lists or objects nested too deep. Leave them out") from error
    except ValueError as error:
        digits = sys.get_int_max_str_digits()
        raise ValueError(
            f"{where}: expected JSON, found a number of more than {digits:,} digits. Write it as text"
        ) from error
    if _NO_UTF_8.search(text, start, end):
        raise _no_utf_8(where, text[start:end])
    if _MAY_BE_HALF.search(text, start, end):
        _check_text(where, row)
    return row, _after_space(text, end)


def _after_space(text: str, start: int) -> int:
    space = _SPACE.match(text, start)
    assert space is not None
    return space.end()


def _no_json(where: str, text: str, start: int, error: json.JSONDecodeError) -> ValueError:
    begin = text[start : start + _SHOWN]
    if "\0" in begin or _NO_UTF_8.search(begin):
        return _no_utf_8(where, begin)
    return ValueError(
        f"{where}: expected JSON, found {begin.strip()!r} ({error}). Write each object in one line, or one list of them"
    )


def _no_utf_8(where: str, text: str) -> ValueError:
    bad = _NO_UTF_8.search(text)
    if "\0" in text:
        bytes_found = "zero bytes, as UTF-16 has"
    else:
        assert bad is not None
        before = text[max(0, bad.start() - 20) : bad.start()]
        bytes_found = f"the byte 0x{ord(bad.group()) - 0xDC00:02X} in {before!r} + ..."
    return ValueError(f"{where}: expected UTF-8, found {bytes_found}. Save the file as UTF-8")


def _check_text(where: str, row: Any) -> None:
    """Refuse half of a surrogate pair, which JSON can express and no file can hold."""
    left = [("", row)]
    while left:
        field, value = left.pop()
        if isinstance(value, str) and not is_text(value):
            at = f"field {field!r}: " if field else ""
            raise ValueError(
                f"{where}: {at}expected text, found half of a surrogate pair, which is no character, in "
                f"{value[:_SHOWN]!r}. Write the whole character, or leave it out"
            )
        if isinstance(value, dict):
            left += [(field or key, text) for key, item in value.items() for text in (key, item)]
        elif isinstance(value, list):
            left += [(field, item) for item in value]
