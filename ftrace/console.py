"""Terminal output of rich in which every text is text: nothing in it is markup, an emoji or an escape sequence."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from ftrace.shown_text import plain, plain_lines


class PlainConsole(Console):
    """A rich console that prints strings as :func:`ftrace.shown_text.plain_lines` shows them.

    Args:
        stderr: Whether to print to stderr instead of stdout.
        settings: Further ones of :class:`rich.console.Console`, such as ``width``.
    """

    def __init__(self, *, stderr: bool = False, **settings: Any) -> None:
        super().__init__(stderr=stderr, **{**settings, "markup": False, "emoji": False, "highlight": False})

    @override
    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(plain_lines(text), **settings)


class PlainTable(Table):
    """A rich table whose title, headings and cells are text on any console; a :class:`rich.text.Text` stays as it is.

    Args:
        title: The title, if there is one.
        settings: Further ones of :class:`rich.table.Table`.
    """

    def __init__(self, title: str | None = None, **settings: Any) -> None:
        super().__init__(title=None if title is None else Text(plain_lines(title), style="table.title"), **settings)

    @override
    def add_column(self, header: Any = "", **settings: Any) -> None:  # type: ignore[override]
        super().add_column(Text(plain_lines(header)) if isinstance(header, str) else header, **settings)

    @override
    def add_row(self, *cells: Any, **settings: Any) -> None:
        super().add_row(*(Text(plain(cell)) if isinstance(cell, str) else cell for cell in cells), **settings)


def escape_unknown_characters() -> None:
    """Let stdout and stderr write escapes of the characters that their encoding doesn't know."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not one that a test or a notebook has put in its place
            stream.reconfigure(errors="backslashreplace")
