r"""Texts from data as they are shown: in terminals and messages, in CSV and in Markdown.

Names, paths, texts of a corpus and answers of models are data, and never commands: no escape sequence, markup, formula,
table border or link. What can't be seen, or would move the cursor, becomes a visible escape, such as ``\x1b`` or
``\u202e``; a line break becomes ``↵``. Joiners inside of words stay, since scripts need them. Pictures are drawn by
:mod:`ftrace.report.style`, pages for browsers by :mod:`ftrace.report.explorer`.
"""

from __future__ import annotations

import re
from typing import Any, TextIO

_LINE_BREAKS = ("\n", "\r\n", "\u2028", "\u2029")
_UNPRINTABLE = re.compile(
    "\r\n|[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U0001d173-\U0001d17a\U000e0000-\U000e00ff]"
    "|(?<![^\x00-\x7f])[\u200c\u200d]"  # joiners, where there is nothing that they could join
)
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")  # as spreadsheets know one, also by full-width signs
_MARKDOWN = re.compile(
    r"^\s*(?:[#>+\-=]|\[(?=[^\]]*\]:)|\d+(?=[.)]\s))"  # what begins a block or defines a link
    r"|[\\`*~$|<]|&(?=#?\w+;)|(?<=\])\("  # code, emphasis, mathematics, cells, HTML, entities, links
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis, but not within a word
)
_ENTITIES = {"<": "&lt;", "&": "&amp;"}  # which also readers understand that know no backslash before them


def plain(text: str) -> str:
    r"""Return a text without characters that a terminal or a browser would act on.

    Example:
        >>> plain("two\nlines, \x1b[31mred")
        'two ↵ lines, \\x1b[31mred'
    """
    return _UNPRINTABLE.sub(_escape, text)


def plain_lines(text: str) -> str:
    r"""Return lines of text, each as :func:`plain` shows it.

    Example:
        >>> plain_lines("two\nlines, \x07")
        'two\nlines, \\x07'
    """
    return "\n".join(map(plain, text.split("\n")))


def one_line(text: str) -> str:
    r"""Return a message, which may quote data, on one line.

    Example:
        >>> one_line("no store\n  at '\x1b[2J'")
        "no store at '\\x1b[2J'"
    """
    return plain(" ".join(text.split()))


def shortened(text: str, limit: int) -> str:
    """Return a text that can be shown, cut to a number of characters.

    Example:
        >>> shortened("Oslo lies in Norway", 10)
        'Oslo lies…'
    """
    shown = plain(text[: limit + 1])
    return shown if len(text) <= limit and len(shown) <= limit else f"{shown[: limit - 1].rstrip()}…"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Say a number of things.

    Example:
        >>> counted(1, "query", "queries"), counted(1200, "example")
        ('1 query', '1,200 examples')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def csv_cell(value: Any) -> Any:
    r"""Return a cell of a CSV file in which no spreadsheet sees a formula: an apostrophe is put before what looks so.

    Numbers stay as they are, whether they are numbers or texts.

    Example:
        >>> csv_cell("=1+1"), csv_cell("-0.5"), csv_cell(-0.5), csv_cell("two\nlines")
        ("'=1+1", '-0.5', -0.5, 'two ↵ lines')
    """
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def markdown_text(text: str) -> str:
    r"""Return a text that Markdown shows as it is, on one line, in a paragraph, a list or a table.

    Example:
        >>> markdown_text("a|b"), markdown_text("<b>"), markdown_text("array[i]"), markdown_text("[here](where)")
        ('a\\|b', '&lt;b>', 'array[i]', '[here]\\(where)')
    """
    return _MARKDOWN.sub(_markdown_escape, plain(text))


def encodable(text: str, stream: TextIO) -> str:
    """Return a text that a stream can write: characters that its encoding doesn't know become escapes."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _markdown_escape(match: re.Match[str]) -> str:
    found = match.group()
    sign = found[-1]
    if sign.isdigit():  # a number that would begin a list: it is the point behind it that is escaped
        return f"{found}\\"
    return found[:-1] + _ENTITIES.get(sign, f"\\{sign}")


def _escape(match: re.Match[str]) -> str:
    characters = match.group()
    if characters in _LINE_BREAKS:
        return " ↵ "
    if characters == "\t":
        return " "
    code = ord(characters)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
