"""A list of queries, from which a reader chooses one."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ftrace.views.marked_text import excerpt, marked_text
from ftrace.views.query_view import QueryLine
from ftrace.views.terminal import id_text, loss_text

_WIDE = 100  # a screen that has room for an example beside each query


def render_queries(lines: Sequence[QueryLine], cut: int | None = None, width: int | None = None) -> Table:
    """Lay out a list of queries: what they ask, when they were learned, and their strongest proponents.

    Args:
        lines: The queries.
        cut: The most characters of a text; default: all.
        width: The width of the screen, a narrow one of which has no room for proponents; default: wide enough.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    has_history = any(line.history is not None for line in lines)
    has_steps = any(line.history is not None and line.history.learned_step is not None for line in lines)
    has_room = width is None or width >= _WIDE
    table.add_column("query", no_wrap=True)
    table.add_column("prompt", overflow="fold", ratio=3)
    table.add_column("answer", overflow="fold", ratio=1)
    if has_history:
        table.add_column("loss", no_wrap=True)
    if has_steps:
        table.add_column("learned at", justify="right", min_width=7)
    if has_room:
        table.add_column("strongest proponent", overflow="fold", ratio=3)
    for line in lines:
        called = marked_text(line.name) if line.name is not None else Text(str(line.query_id))
        cells = [called, _cut_text(line.prompt, cut), _cut_text(line.answer, cut)]
        if has_history:
            cells.append(Text("" if line.history is None else loss_text(line.history)))
        if has_steps:
            step = None if line.history is None else line.history.learned_step
            cells.append(Text("" if step is None else "never" if step < 0 else str(step)))
        table.add_row(*cells, *([_strongest(line, cut)] if has_room else []))
    return table


def _cut_text(text: str | None, cut: int | None) -> Text:
    return marked_text(excerpt(text or "", (), cut)[0])


def _strongest(line: QueryLine, cut: int | None) -> Text:
    if line.strongest is None:
        return Text("none", style="dim")
    if line.strongest.text is None:
        return Text(id_text(line.strongest.example_id, line.strongest.name))
    return marked_text(excerpt(line.strongest.text, (), cut)[0])
