"""Pictures of a run: its evaluation with the most that is possible, and its ledger."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ftrace.evaluation.retrieval.metrics import LOWER_IS_BETTER
from ftrace.report.explorer.format import Evaluation, EvaluationCell, Head
from ftrace.report.ledger_plot import draw_accounts
from ftrace.report.style import ACCENT, COLUMN, GREY, INK, LIGHT, PAGE, SMALL, TEXT, TINY, finite, in_lines, shown

_ACROSS = 5


def draw_evaluation(head: Head) -> Figure | None:
    """Draw each method's metrics as dots with intervals, and the most that any method could get as a line.

    Returns:
        The picture; None if the run was not evaluated.
    """
    evaluation = head["run"]["evaluation"]
    if evaluation is None or not evaluation["rows"] or not evaluation["metrics"]:
        return None
    across = min(_ACROSS, len(evaluation["metrics"]))
    down = math.ceil(len(evaluation["metrics"]) / across)
    width = PAGE - 0.2
    heading = in_lines(shown(evaluation["title"]), width, TEXT, 2)
    notes = [line for note in evaluation["notes"] for line in in_lines(shown(note), width, SMALL, 2)]
    if any(cell["low"] is not None for row in evaluation["rows"] for cell in row["cells"]):
        notes.insert(0, "percent; the lines through dots are intervals")
    else:
        notes.insert(0, "percent")
    height = down * (0.2 * len(evaluation["rows"]) + 0.75) + 0.16 * (len(heading) + len(notes)) + 0.1
    figure = Figure(figsize=(PAGE, height), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes in grid.ravel()[len(evaluation["metrics"]) :]:
        axes.remove()
    for number, axes in enumerate(grid.ravel()[: len(evaluation["metrics"])]):
        _draw_metric(axes, evaluation, number)
    names = ["\n".join(in_lines(shown(row["name"]), 1.6, SMALL, 2)) for row in evaluation["rows"]]
    grid[0, 0].set_yticks(range(len(names)), names)
    grid[0, 0].set_ylim(len(names) - 0.4, -0.6)
    figure.suptitle("\n".join(heading), x=0.01, ha="left")
    figure.supxlabel("\n".join(notes), x=0.01, ha="left", fontsize=SMALL, color=GREY)
    return figure


def _draw_metric(axes: Axes, evaluation: Evaluation, number: int) -> None:
    metric, ceiling = evaluation["metrics"][number], evaluation["ceiling"][number]
    cells = [row["cells"][number] for row in evaluation["rows"]]
    top = max([100 * value for cell in cells for value in cell.values() if isinstance(value, float)], default=1.0)
    for place, cell in enumerate(cells):
        _draw_cell(axes, place, cell)
    axes.hlines(range(len(cells)), 0, 1, transform=axes.get_yaxis_transform(), color=LIGHT, linewidth=0.5, zorder=0)
    if ceiling is not None:
        top = max(top, 100 * ceiling)
        axes.axvline(100 * ceiling, color=INK, linewidth=1.3, zorder=1)
        axes.annotate(
            f"ceiling {100 * ceiling:.3g}", (100 * ceiling, 1), (2, 1), xycoords=axes.get_xaxis_transform(),
            textcoords="offset points", ha="right", va="bottom", fontsize=TINY,
        )  # fmt: skip
    axes.set_xlim(0, 1.06 * top or 1)
    lower = ", lower is better" if metric in LOWER_IS_BETTER else ""
    axes.set_title("\n".join(in_lines(shown(metric) + lower, PAGE / _ACROSS - 0.3, TEXT, 2)), loc="left", pad=11)
    axes.locator_params(axis="x", nbins=3)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _draw_cell(axes: Axes, place: int, cell: EvaluationCell) -> None:
    mean, low, high = (100 * value for value in finite([cell["mean"], cell["low"], cell["high"]]))
    if math.isnan(mean):
        return
    if not math.isnan(low) and not math.isnan(high):
        axes.plot((low, high), (place, place), color=ACCENT, linewidth=1)
    axes.plot(mean, place, "o", color=ACCENT, markersize=4)
    axes.annotate(
        f"{mean:.1f}", (1, place), (1, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points", ha="left",
        va="center", fontsize=TINY, annotation_clip=False,
    )  # fmt: skip


def draw_ledger(head: Head) -> Figure | None:
    """Draw how much the queries' losses fell in each stretch of training, and what explains it.

    Returns:
        The picture; None if the run has no ledger.
    """
    ledger = head["run"]["ledger"]
    if ledger is None or len(ledger["steps"]) < 2:
        return None
    sentence = ledger["sentence"][:1].upper() + ledger["sentence"][1:]
    lines = in_lines(shown(sentence), COLUMN - 0.1, SMALL, 6)
    for doubt in ledger["doubts"]:
        lines += in_lines(shown(doubt), COLUMN - 0.1, SMALL, 6)
    figure = Figure(figsize=(COLUMN, 2.2 + 0.14 * len(lines)), layout="constrained")
    accounts = {account["name"]: np.array(finite(account["values"])) for account in ledger["accounts"]}
    draw_accounts(figure.subplots(), np.array(ledger["steps"], float), np.array(finite(ledger["actual"])), accounts)
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=SMALL)
    return figure
