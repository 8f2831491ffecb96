"""Estimates as tables show them: percent with intervals, in the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from rich import box
from rich.table import Table

from ftrace.evaluation.estimates import Estimate


def plain_table(title: str, first: str, others: Sequence[str]) -> Table:
    """Make an empty table: the first column is for names, the others for figures."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
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


def cell(estimate: Estimate, *, bold: bool = False, signed: bool = False) -> str:
    """Format a mean in percent and half the width of its interval, aligned with other cells."""
    mean = percent(estimate.mean, signed=signed)
    parts = [f"[bold]{mean}[/]" if bold else mean, *_uncertainty(estimate)]
    return " ".join(parts)


def _uncertainty(estimate: Estimate) -> Iterator[str]:
    """Yield half the width of the interval, or as many spaces, and the spread if there is one."""
    half = (estimate.high - estimate.low) / 2
    yield f"[dim]±{100 * half:<4.1f}[/]" if not np.isnan(half) else " " * 5
    if estimate.spread is not None:
        yield f"[dim]({100 * estimate.spread:.1f})[/]"


def markdown_grid(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Make the lines of a Markdown table with a row for each method.

    Args:
        columns: Titles of the columns.
        rows: Cells by the name of the method.
    """
    head = [f"| method | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    return head + [f"| {name.replace('|', chr(92) + '|')} | {' | '.join(cells)} |" for name, cells in rows.items()]
