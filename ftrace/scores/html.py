"""Tables as a notebook shows them. Every text is escaped, since texts from data are data and never HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ftrace.shown_text import plain, shortened

_LONGEST = 160
_CELL = ' style="text-align: left; vertical-align: top"'


def facts_and_tables(title: str, facts: Iterable[tuple[str, str]], *tables: str) -> str:
    """Render what is known of an object: a heading, a table of facts, and further tables.

    Args:
        title: The heading.
        facts: Names and values.
        *tables: From :func:`table`; empty ones are left out.
    """
    rows = "".join(
        f"<tr><th{_CELL}>{escape(plain(name))}</th><td{_CELL}><bdi>{escape(plain(value))}</bdi></td></tr>"
        for name, value in facts
    )
    return f"<div><b>{escape(plain(title))}</b><table><tbody>{rows}</tbody></table>{''.join(tables)}</div>"


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render a table; "" if it has no rows.

    Args:
        caption: What it is of.
        header: Names of the columns.
        rows: Their cells, which are cut where they are long.
    """
    if not rows:
        return ""
    names = "".join(f"<th{_CELL}>{escape(plain(name))}</th>" for name in header)
    lines = "".join(
        f"<tr>{''.join(f'<td{_CELL}><bdi>{escape(shortened(cell, _LONGEST))}</bdi></td>' for cell in row)}</tr>"
        for row in rows
    )
    return (
        f'<table><caption style="caption-side: top; text-align: left">{escape(plain(caption))}</caption>'
        f"<thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>"
    )
