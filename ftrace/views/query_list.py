"""A list of queries, from which a reader chooses one."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ftrace.views.marked_text import excerpt, marked_text
from ftrace.views.query_view import QueryLine
from ftrace.views.terminal import id_text, loss_text


def render_queries(lines: Sequence[QueryLine], cut: int | None = None) -> Table:
    """Lay out a list of queries: what they ask, when they were learned, and their strongest proponents.

    Args:
        lines: The queries.
        cut: The most characters of a text; default: all.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    has_history = any(line.history is not None for line in lines)
    has_steps = any(line.history is not None and line.history.learned_step is not None for line in lines)
    table.add_column("query", no_wrap=True)
    table.add_column("prompt → answer", overflow="fold", ratio=3)
    if has_history:
        table.add_column("loss", no_wrap=True)
    if has_steps:
        table.add_column("learned", justify="right", no_wrap=True)
    table.add_column("strongest proponent", overflow="fold", ratio=2)
    for line in lines:
        cells = [marked_text(line.name) if line.name is not None else Text(str(line.query_id)), _asked(line, cut)]
        if has_history:
            cells.append(Text("" if line.history is None else loss_text(line.history)))
        if has_steps:
            step = None if line.history is None else line.history.learned_step
            cells.append(Text("" if step is None else "never" if step < 0 else f"step {step}"))
        table.add_row(*cells, _strongest(line, cut))
    return table


def _asked(line: QueryLine, cut: int | None) -> Text:
    text = marked_text(excerpt(line.prompt or "", (), cut)[0])
    if line.answer is not None:
        text.append(" → ")
        text.append_text(marked_text(excerpt(line.answer, (), cut)[0], style="bold"))
    return text


def _strongest(line: QueryLine, cut: int | None) -> Text:
    if line.strongest is None:
        return Text("none", style="dim")
    if line.strongest.text is None:
        return Text(id_text(line.strongest.example_id, line.strongest.name))
    return marked_text(excerpt(line.strongest.text, (), cut)[0])
