"""A question that a model was asked, its most likely answers, and others that a person asks about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ftrace.shown_text import plain
from ftrace.views.marked_text import marked_text
from ftrace.views.query_view import Said
from ftrace.views.terminal import percent


@dataclass(frozen=True)
class AskedAbout:
    """An answer that a person asks about.

    Args:
        text: The answer.
        probability: Its probability.
        forms: Other forms of it, which its probability includes.
        why: Why it is asked about, such as "the right answer".
    """

    text: str
    probability: float
    forms: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class QuestionView:
    """A question and answers to it.

    Args:
        prompt: The question as the model reads it.
        query_id: The run's query that it is; None if it is none.
        said: The model's most likely answers, best first.
        forms: Other forms of each of them, which its probability includes.
        others: Answers that a person asks about.
        snapshot: The snapshot that was asked.
        notes: What a reader should know, a sentence each.
    """

    prompt: str
    query_id: int | None
    said: tuple[Said, ...]
    forms: tuple[tuple[str, ...], ...]
    others: tuple[AskedAbout, ...] = ()
    snapshot: str = ""
    notes: tuple[str, ...] = ()


def render_question(view: QuestionView) -> Group:
    """Lay out a question with the answers to it."""
    heading = marked_text(view.prompt, style="bold")
    if view.query_id is not None:
        heading.append(f"  query {view.query_id} of the run", style="not bold dim")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True)
    for place, (said, forms) in enumerate(zip(view.said, view.forms, strict=True)):
        label = f"  the model, at {plain(view.snapshot)}" if not place else ""
        right = "" if said.right is None else "right" if said.right else "wrong"
        answer = _with_forms(marked_text(said.text or "", style="bold" if not place else ""), forms)
        table.add_row(Text(label), percent(said.probability or 0.0), answer, Text(right, style=_STYLES.get(right, "")))
    for other in view.others:
        answer = _with_forms(marked_text(other.text), other.forms)
        table.add_row(Text(f"  {plain(other.why)}"), percent(other.probability), answer, "")
    return Group(heading, table, *(Text(f"  {plain(note)}", style="yellow") for note in view.notes))


def _with_forms(answer: Text, forms: Sequence[str]) -> Text:
    if forms:
        answer.append(f"  or {plain('; '.join(forms))}", style="not bold dim")
    return answer


_STYLES = {"right": "green", "wrong": "red"}
