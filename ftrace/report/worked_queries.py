"""A query shown to a reader: its prompt, its answer, and the training examples that taught it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from rich.panel import Panel
from rich.table import Table

from ftrace.scores import ScoreStore


@dataclass(frozen=True)
class WorkedQuery:
    """A query with its answer and its ground-truth proponents.

    Args:
        prompt: The masked sentence.
        answer: The right answer.
        other_answers: Other accepted surface forms of it.
        proponent_ids: Training examples that state its fact.
    """

    query_id: int
    prompt: str
    answer: str
    other_answers: Sequence[str]
    proponent_ids: Collection[int]


def render_worked_query(
    query: WorkedQuery, store: ScoreStore, kind: str, sentence: Callable[[int], str], k: int = 3
) -> Panel:
    """Render a query with its strongest proponents and opponents.

    Args:
        store: The store of scores.
        kind: The kind of scores.
        sentence: Function from an example's id to its text.
        k: Number of proponents, and of opponents.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column(f"score ({kind})", justify="right")
    table.add_column("states the fact")
    table.add_column("training example")
    stating = set(query.proponent_ids)
    for label, largest in (("proponents", True), ("opponents", False)):
        ids, scores = store.top(query.query_id, k, kind, largest=largest)
        for rank, (example_id, score) in enumerate(zip(ids.tolist(), scores.tolist(), strict=True)):
            mark = "[green]yes[/]" if example_id in stating else "no"
            table.add_row(
                label if rank == 0 else "", f"{score:+.3f}", mark, f"{sentence(example_id)}  [dim]#{example_id}[/]"
            )
    title = f"query {query.query_id}: {query.prompt}  →  [bold]{query.answer}[/]"
    also = f"also accepted: {', '.join(query.other_answers)}" if query.other_answers else None
    return Panel(table, title=title, title_align="left", subtitle=also, subtitle_align="left", expand=False)
