"""Picture of the ledger: how the queries' losses fell, and what made them fall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ftrace.report.ledger_stretches import by_stretches
from ftrace.report.pictures import save_picture
from ftrace.report.style import ACCENT, GREY, INK, PAGE, SMALL, TEXT, in_lines, look, series, shown
from ftrace.scores import Ledger

_SURFACES = {  # colours that differ in grey print, too; hatched where greys are near
    "examples": (ACCENT, ""), "predicted": (ACCENT, ""), "momentum": ("#E69F00", "////"), "decay": ("#8c2d04", ""),
    "uncovered": ("#c9c9c9", ""), "projection": ("#CC79A7", "...."),
    "rounding": ("#56B4E9", "oo"), "curvature": ("#ffffff", "xxxx"),
}  # fmt: skip


def plot_ledger(ledger: Ledger, file: Path, query_ids: Sequence[int] | None = None) -> Path:
    """Draw a run's ledger.

    The upper panel has the loss of some queries by step, with a dot where each was first seen to be right. The lower
    panel has the mean fall of all queries' losses in each stretch of training, in nats, and stacked bars of the
    accounts that explain it.

    Args:
        file: Path of the picture; its ending determines the format.
        query_ids: Queries whose losses are drawn; default: six that were first right at different times.

    Returns:
        The path.

    Raises:
        ValueError: If the ledger is empty, or lacks a query.
    """
    if not len(ledger.steps):
        raise ValueError("expected a ledger with at least one interval, found none: train for longer")
    chosen = _columns(ledger, query_ids)
    with look():
        figure = Figure(figsize=(PAGE, 5.0), layout="constrained")
        losses, accounts = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.2))
        _draw_losses(losses, ledger, chosen)
        stretches = by_stretches(ledger)
        draw_accounts(accounts, stretches.edges, stretches.actual, stretches.accounts)
        sentence = in_lines(_first_letter(str(ledger.summary())), PAGE - 0.4, TEXT, most=4)
        figure.suptitle("\n".join(sentence), x=0.01, ha="left")
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
    for number, column in enumerate(chosen):
        loss = np.append(ledger["loss"][:, column], ledger["next_loss"][-1, column])
        style = series(number)
        marker, name = style.pop("marker"), f"query {ledger.query_ids[column]}"
        if learned[column] >= 0:
            axes.plot(steps, loss, **style)
            at = int(np.searchsorted(steps, learned[column]))
            axes.plot(
                steps[at],
                loss[at],
                marker=marker,
                color=style["color"],
                markersize=5.5,
                markeredgecolor=INK,
                markeredgewidth=0.5,
                zorder=3,
            )
            axes.plot([], [], marker=marker, label=name, **style)
        else:
            axes.plot(steps, loss, label=name, **style)
    axes.set_ylabel("loss, nats")
    axes.set_ylim(bottom=0)
    title = "marked: first seen to be right" if any(learned[column] >= 0 for column in chosen) else None
    if chosen:
        axes.legend(ncols=2, title=title, title_fontsize=SMALL, alignment="left")
    axes.grid(axis="y")


def draw_accounts(axes: Axes, edges: np.ndarray, actual: np.ndarray, accounts: Mapping[str, np.ndarray]) -> None:
    """Draw how much losses fell in stretches of training, and stacked bars of what explains it; rises are below 0.

    Args:
        edges: Ends of the stretches in optimizer steps, ascending, one more than there are stretches.
        actual: By stretch, the fall in nats; NaN leaves a gap.
        accounts: By name, what each explains, likewise.
    """
    centres, width = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    above, below = np.zeros(len(centres)), np.zeros(len(centres))
    for name, given in accounts.items():
        values = np.nan_to_num(given)
        colour, hatch = _SURFACES.get(name, ("#999999", "\\\\\\\\"))
        bottom = np.where(values >= 0, above, below)
        axes.bar(
            centres, values, 0.88 * width, bottom=bottom, facecolor=colour, hatch=hatch, linewidth=0.3,
            edgecolor=INK if hatch else colour, label=in_lines(shown(name), 1.0, SMALL)[0],
        )  # fmt: skip
        above += np.clip(values, 0, None)
        below += np.clip(values, None, 0)
    axes.plot(centres, actual, color=INK, marker="o", markersize=2.5, linewidth=1, label="actual fall")
    known = np.nan_to_num(actual)
    _cut_off_towers(axes, centres, np.maximum(above, known), np.minimum(below, known))
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.set_ylabel("fall of a query's loss, nats")
    axes.set_xlabel("optimizer step")
    axes.legend(reverse=True)
    axes.grid(axis="y")


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
        f"cut off: up to {above[tower]:.3g}", (centres[tower], top), va="top", ha="left", fontsize=SMALL,
        xytext=(10, -2), textcoords="offset points",
    )  # fmt: skip


def _first_letter(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
