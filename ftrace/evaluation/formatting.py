"""Estimates as tables show them: percent with intervals, in the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich import box
from rich.text import Text

from ftrace.console import PlainTable
from ftrace.evaluation.estimates import Estimate
from ftrace.shown_text import markdown_text


def plain_table(title: str, first: str, others: Sequence[str]) -> PlainTable:
    """Make an empty table: the first column is for names, the others for figures."""
    table = PlainTable(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right")
    return table


def with_interval(estimate: Estimate, *, signed: bool = False) -> str:
    """Format a mean in percent, the ends of its interval and, over several runs, its spread.

    Args:
        signed: Whether to write a plus before positive numbers.

    Example:
        >>> with_interval(Estimate(0.5, 0.25, 0.75, 0.1))
        '50.0 [25.0, 75.0] (10.0)'
    """
    mean, low, high = (percent(share, signed=signed) for share in (estimate.mean, estimate.low, estimate.high))
    ends = f" [{low}, {high}]" if low else ""
    spread = "" if estimate.spread is None else f" ({100 * estimate.spread:.1f})"
    return f"{mean}{ends}{spread}"


def percent(share: float, *, signed: bool = False) -> str:
    """Format a share in percent with one decimal, but 100 without; NaN gives an empty text."""
    if np.isnan(share):
        return ""
    return "100" if round(share, 3) == 1 and not signed else f"{100 * share:{'+' if signed else ''}.1f}"


def cell(estimate: Estimate, *, bold: bool = False, signed: bool = False) -> Text:
    """Format a mean in percent, half the width of its interval and its spread over runs, aligned in a column."""
    half = (estimate.high - estimate.low) / 2
    uncertainty = " " * 5 if np.isnan(half) else f"±{100 * half:<4.1f}"
    spread = "" if estimate.spread is None else f" ({100 * estimate.spread:.1f})"
    return mean_and_rest(percent(estimate.mean, signed=signed), f" {uncertainty}{spread}", bold=bold)


def mean_and_rest(mean: str, rest: str, *, bold: bool = False) -> Text:
    """Lay out a figure, bold if it is to stand out, and dim what belongs to it."""
    return Text.assemble((mean, "bold" if bold else ""), (rest, "dim"))


def markdown_grid(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Make the lines of a Markdown table with a row for each method.

    Args:
        columns: Titles of the columns.
        rows: Cells, which hold figures, by the name of the method.
    """
    head = [f"| method | {' | '.join(map(markdown_text, columns))} |", f"|---|{'---:|' * len(columns)}"]
    return head + [f"| {markdown_text(name)} | {' | '.join(cells)} |" for name, cells in rows.items()]
