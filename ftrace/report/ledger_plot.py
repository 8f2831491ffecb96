"""Picture of the ledger: how the queries' losses fell, and what made them fall."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ftrace.report.ledger_stretches import by_stretches
from ftrace.report.pictures import save_picture
from ftrace.scores import Ledger

_COLOURS = {
    "examples": "#2a6f97", "momentum": "#e09f3e", "decay": "#9e2a2b", "uncovered": "#7f7f7f", "projection": "#6a4c93",
    "predicted": "#2a6f97",
}  # fmt: skip


def plot_ledger(ledger: Ledger, file: Path, query_ids: Sequence[int] | None = None) -> Path:
    """Draw a run's ledger.

    The upper panel has the loss of some queries by step, with a dot where each was first seen to be right. The lower
    panel has the mean fall of all queries' losses in each stretch of training, in nats, and stacked bars of the
    accounts that explain it.

    Args:
        file: Path of the picture; its ending determines the format.
        query_ids: Queries whose losses are drawn; default: six that were learned at different times.

    Returns:
        The path.

    Raises:
        ValueError: If the ledger is empty, or lacks a query.
    """
    if not len(ledger.steps):
        raise ValueError("expected a ledger with at least one interval, found none: train for longer")
    chosen = _columns(ledger, query_ids)
    figure = Figure(figsize=(9, 7), layout="constrained")
    losses, accounts = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.2))
    _draw_losses(losses, ledger, chosen)
    _draw_accounts(accounts, ledger)
    figure.suptitle(textwrap.fill(_first_letter(str(ledger.summary())), 90), fontsize=11)
    return save_picture(figure, file)


def _columns(ledger: Ledger, query_ids: Sequence[int] | None) -> list[int]:
    """Return the ledger's columns of the queries whose losses are drawn."""
    known = {int(query): column for column, query in enumerate(ledger.query_ids)}
    if query_ids is not None:
        missing = [query for query in query_ids if query not in known]
        if missing:
            raise ValueError(f"expected queries of the ledger, found {missing[:3]}; it has {list(known)[:3]}, ...")
        return [known[query] for query in query_ids]
    learned = ledger.learned_steps()
    order = sorted(known.values(), key=lambda column: (learned[column] < 0, learned[column], column))
    count = min(6, len(order))
    return [order[index] for index in np.linspace(0, len(order) - 1, count).round().astype(int)] if count else []


def _draw_losses(axes: Axes, ledger: Ledger, chosen: Sequence[int]) -> None:
    steps = np.append(ledger.steps, ledger.next_steps[-1])
    learned = ledger.learned_steps()
    for column in chosen:
        loss = np.append(ledger["loss"][:, column], ledger["next_loss"][-1, column])
        (line,) = axes.plot(steps, loss, linewidth=1.2, label=f"query {ledger.query_ids[column]}")
        if learned[column] >= 0:
            at = int(np.searchsorted(steps, learned[column]))
            axes.plot(steps[at], loss[at], "o", color=line.get_color(), markersize=6)
    axes.set_ylabel("loss (nats)")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, ncols=2, title="a dot: first seen to be right", title_fontsize=8)
    axes.grid(alpha=0.25)


def _draw_accounts(axes: Axes, ledger: Ledger) -> None:
    """Draw bars for equally long stretches: falls of the loss above 0, rises below."""
    stretches = by_stretches(ledger)
    edges = stretches.edges
    centres, width = (edges[:-1] + edges[1:]) / 2, float(np.diff(edges).min())
    above, below = np.zeros(len(centres)), np.zeros(len(centres))
    for name, booked in stretches.accounts.items():
        values = np.nan_to_num(booked)
        bottom = np.where(values >= 0, above, below)
        axes.bar(centres, values, 0.9 * width, bottom=bottom, color=_COLOURS[name], label=name)
        above += np.clip(values, 0, None)
        below += np.clip(values, None, 0)
    actual = np.nan_to_num(stretches.actual)
    axes.plot(centres, actual, "k.-", linewidth=1, label="actual")
    _cut_off_towers(axes, centres, np.maximum(above, actual), np.minimum(below, actual))
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_ylabel("fall of a query's loss (nats)")
    axes.set_xlabel("optimizer step")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)


def _cut_off_towers(axes: Axes, centres: np.ndarray, above: np.ndarray, below: np.ndarray) -> None:
    """Cut off a bar that dwarfs all others, as the first one often does, and write its height beside it."""
    heights = np.sort(above)
    rest = heights[-2] if len(heights) > 1 else 0.0
    if rest <= 0 or heights[-1] <= 4 * rest:
        return
    top = 1.3 * rest
    axes.set_ylim(min(1.3 * float(below.min()), -0.05 * top), top)
    tower = int(above.argmax())
    axes.annotate(
        f" up to {above[tower]:.3g}", (centres[tower], top), va="top", ha="left", fontsize=8, xytext=(8, -2),
        textcoords="offset points",
    )  # fmt: skip


def _first_letter(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
