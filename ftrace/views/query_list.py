"""A list of queries, from which a reader chooses one."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ftrace.scores import NEVER_ASKED, Answered
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
    losses = [None if line.history is None else line.history.losses for line in lines]
    answered = [NEVER_ASKED if line.history is None else line.history.answered for line in lines]
    has_losses = any(of_query is not None for of_query in losses)
    has_steps = any(of_query.state != "unknown" for of_query in answered)
    has_room = width is None or width >= _WIDE
    table.add_column("query", no_wrap=True)
    table.add_column("prompt", overflow="fold", ratio=3)
    table.add_column("answer", overflow="fold", ratio=1)
    if has_losses:
        table.add_column("loss", no_wrap=True)
    if has_steps:
        table.add_column("learned at", justify="right", min_width=7)
    if has_room:
        table.add_column("strongest proponent", overflow="fold", ratio=3)
    for line, of_line, when in zip(lines, losses, answered, strict=True):
        called = marked_text(line.name) if line.name is not None else Text(str(line.query_id))
        cells = [called, _cut_text(line.prompt, cut), _cut_text(line.answer, cut)]
        if has_losses:
            cells.append(Text("" if of_line is None else loss_text(of_line)))
        if has_steps:
            cells.append(Text(_learned_at(when)))
        table.add_row(*cells, *([_strongest(line, cut)] if has_room else []))
    return table


def _cut_text(text: str | None, cut: int | None) -> Text:
    return marked_text(excerpt(text or "", (), cut)[0])


def _learned_at(answered: Answered) -> str:
    if answered.state in ("unknown", "never"):
        return "" if answered.state == "unknown" else "never"
    forgotten = ", forgotten" if answered.state == "forgotten" else ""
    return f"{'before' if answered.was_known else answered.first_right}{forgotten}"


def _strongest(line: QueryLine, cut: int | None) -> Text:
    if line.strongest is None:
        return Text("none", style="dim")
    if line.strongest.text is None:
        return Text(id_text(line.strongest.example_id, line.strongest.name))
    return marked_text(excerpt(line.strongest.text, (), cut)[0])
