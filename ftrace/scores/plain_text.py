r"""Texts as they can be shown: what can't be seen, or would move the cursor, becomes a visible escape.

Control characters, ANSI escapes, controls of the writing direction, invisible spaces and halves of surrogate pairs come
out as ``\x1b`` or ``\u202e``; a line break as ``↵``. Joiners inside of words stay, since scripts need them.
"""

from __future__ import annotations

import re

_LINE_BREAKS = ("\n", "\r\n", "\u2028", "\u2029")
_UNPRINTABLE = re.compile(
    "\r\n|[\x00-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff"
    "\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U000e0000-\U000e00ff]"
)


def plain(text: str) -> str:
    r"""Return a text without characters that a terminal or a browser would act on.

    Example:
        >>> plain("two\nlines, \x1b[31mred")
        'two ↵ lines, \\x1b[31mred'
    """
    return _UNPRINTABLE.sub(_escape, text)


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


def _escape(match: re.Match[str]) -> str:
    characters = match.group()
    if characters in _LINE_BREAKS:
        return " ↵ "
    if characters == "\t":
        return " "
    code = ord(characters)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
