"""Tables for the terminal: percent, within 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.text import Text

from ftrace.console import PlainTable
from ftrace.evaluation.formatting import cell, percent, plain_table
from ftrace.evaluation.query_groups import QueryGroup
from ftrace.evaluation.retrieval.evaluation import Evaluation
from ftrace.evaluation.retrieval.metrics import MAIN
from ftrace.shown_text import plain

_MOST_COLUMNS = 6


def title_of(evaluation: Evaluation) -> str:
    """Say in one line what was evaluated."""
    of_runs = [run.queries for run in evaluation.runs]
    sizes = np.concatenate([run.num_candidates for run in evaluation.runs])
    return title_text(
        " + ".join(str(len(queries)) for queries in of_runs),
        list(dict.fromkeys(queries.description for queries in of_runs)),
        evaluation.half,
        max(queries.without_proponents for queries in of_runs),
        (int(sizes.min()), int(sizes.max())),
        evaluation.level,
    )


def title_text(
    counts: str, descriptions: Sequence[str], half: str, left_out: int, sizes: tuple[int, int] | None, level: str
) -> str:
    """Say in one line what was evaluated.

    Args:
        counts: How many queries, run by run.
        descriptions: Of the queries.
        half: Which half of them, or "all".
        left_out: Number of queries without ground-truth proponents, which were left out.
        sizes: Number of candidates of a query, the least and the most; None if that isn't known.
        level: The unit that is ranked, "row" or "sentence".
    """
    words = list(descriptions)
    if half != "all":
        words.append(f"{half} half")
    if left_out:
        words.append(f"{left_out} without proponents left out")
    title = f"{counts} queries ({'; '.join(words)})"
    if sizes is None:
        return title
    least, most = sizes
    unit = "candidates" if level == "row" else "sentences"
    return f"{title}, {least:,} {unit} each" if least == most else f"{title}, {least:,} to {most:,} {unit} each"


def notes_of(evaluation: Evaluation) -> list[str]:
    """List what a reader must know about the figures."""
    several = len(evaluation.runs) > 1
    notes = ["percent; ±: half the 95% interval over facts; ties in expectation; R@n: n is a query's own number"]
    if several:
        notes.append(f"means of {len(evaluation.runs)} runs; in brackets their standard deviation")
    if evaluation.published:
        notes.append(f"published: {evaluation.published[0].source}; full-size data, candidate pools")
    return [*notes, *evaluation.notes]


def render_table(evaluation: Evaluation) -> RenderableType:
    """Render the main metrics, the best of each column bold, and below them differences to a row if asked for."""
    parts: list[RenderableType] = [_main_table(evaluation)]
    parts += [Text(f" {plain(note)}", style="dim") for note in notes_of(evaluation)]
    if evaluation.against is not None:
        parts += [Text(), _difference_table(evaluation)]
    return Stack(*parts)


def _shown(evaluation: Evaluation) -> list[str]:
    return [name for name in evaluation.names if name not in evaluation.hidden]


def _columns(evaluation: Evaluation) -> tuple[str, ...]:
    """Return the metrics that there is room for."""
    return MAIN if len(evaluation.runs) == 1 else tuple(metric for metric in MAIN if metric != "P@1")


def _main_table(evaluation: Evaluation) -> PlainTable:
    metrics = _columns(evaluation)
    table = plain_table(title_of(evaluation), "method", metrics)
    shown = _shown(evaluation)
    best = {metric: max(evaluation.estimates[name][metric].mean for name in shown) for metric in metrics}
    for name in shown:
        row = evaluation.estimates[name]
        table.add_row(name, *[cell(row[metric], bold=row[metric].mean == best[metric]) for metric in metrics])
    if evaluation.published:
        table.add_section()
        table.add_row("published", style="italic")
        for published in evaluation.published:
            cells = [percent(published.metrics[metric]) if metric in published.metrics else "" for metric in metrics]
            table.add_row(f"  {published.method}", *[_aligned(cell, evaluation) for cell in cells], style="italic")
    table.add_section()
    table.add_row(
        "ceiling", *[_aligned(percent(evaluation.ceiling[metric]), evaluation) for metric in metrics], style="dim"
    )
    return table


def _difference_table(evaluation: Evaluation) -> PlainTable:
    metrics = _columns(evaluation)
    table = plain_table(
        f"minus {evaluation.against or ''}, paired by query; bold: the interval is without 0", "method", metrics
    )
    for name in _shown(evaluation):
        if name != evaluation.against:
            row = evaluation.differences[name]
            cells = [cell(row[metric], bold=row[metric].excludes_0, signed=True) for metric in metrics]
            table.add_row(name, *cells)
    return table


def render_breakdown(evaluation: Evaluation, groups: Sequence[QueryGroup], metric: str = "P@10") -> RenderableType:
    """Render one metric by group of queries, with a column for each of the first methods."""
    shown = _shown(evaluation)
    by = {"relation": "relation", "proponents": "number of proponents"}[groups[0].by]
    table = plain_table(f"{metric} by {by}", by, ("queries", *shown[:_MOST_COLUMNS]))
    for group in groups:
        cells = [percent(group.estimates[name][metric].mean) for name in shown[:_MOST_COLUMNS]]
        table.add_row(group.name, str(group.num_queries), *cells)
    rest = len(shown) - _MOST_COLUMNS
    more = f", and {rest} more methods" if rest > 0 else ""
    return Stack(table, Text(f" with intervals{more}: breakdown.csv", style="dim"))


def _aligned(cell: str, evaluation: Evaluation) -> str:
    """Pad a cell that has no interval or spread over runs, to align it with those that have."""
    return f"{cell}{' ' * (6 if len(evaluation.runs) == 1 else 12)}" if cell else ""
