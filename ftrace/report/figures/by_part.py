"""Picture of the strongest examples' scores by epoch, by layer, or before and after the query was learned."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ftrace.report.explorer.format import Head, Parts, QueryChunk
from ftrace.report.figures.page import heading_of, text_of, title_of
from ftrace.report.style import (
    ACCENT,
    AGAINST,
    GREY,
    INK,
    PAGE,
    SMALL,
    TEXT,
    TINY,
    finite,
    in_lines,
    score_text,
    shown,
    text_width,
)

_EXAMPLES = 5
_MOST_TICKS = 12
_LABEL = 2.0  # inches


def draw_parts(head: Head, query: QueryChunk) -> Figure | None:
    """Draw bars for the parts of the strongest examples' scores, of the first method that has parts.

    A column for each axis has one scale, so that its examples can be compared.

    Returns:
        The picture; None if no method's scores are broken down.
    """
    methods = sorted({parts["method"] for parts in query["parts"] if parts["examples"]})
    if not methods:
        return None
    method = methods[0]
    chosen = [parts for parts in query["parts"] if parts["method"] == method and parts["examples"]]
    positions = list(chosen[0]["examples"][:_EXAMPLES])
    widths = [max(2.5, min(len(head["methods"][method]["axes"][parts["axis"]]), 24)) for parts in chosen]
    figure = Figure(figsize=(PAGE, 0.62 * len(positions) + 1.5), layout="constrained")
    grid = figure.subplots(
        len(positions), len(chosen) + 1, squeeze=False, sharey="col", sharex="col",
        width_ratios=[sum(widths) * _LABEL / (PAGE - _LABEL), *widths],
    )  # fmt: skip
    for row, position in enumerate(positions):
        example = query["examples"][position]
        place = example["places"][method]
        score = None if place is None else place["score"]
        axes = grid[row, 0]
        axes.set_axis_off()
        lines = in_lines(text_of(example), _LABEL - 0.15, SMALL, 3)
        weight, colour = ("bold", ACCENT) if example["states_fact"] else ("normal", GREY)
        head_line = f"{shown(example['id'])}   {'' if score is None else score_text(score)}"
        axes.text(0, 1, head_line, transform=axes.transAxes, va="top", fontsize=TINY, color=colour, weight=weight)
        axes.text(0, 1, "\n" + "\n".join(lines), transform=axes.transAxes, va="top", fontsize=SMALL, color=INK)
    inches = (PAGE - _LABEL - 0.5 * len(chosen)) / sum(widths)
    for column, parts in enumerate(chosen, 1):
        names = head["methods"][method]["axes"][parts["axis"]]
        for row, position in enumerate(positions):
            _draw_bars(grid[row, column], parts, position)
        of_scores = f"{title_of(head, method)}, " if column == 1 else ""
        title = "before and after learned" if parts["axis"] == "learned" else f"by {shown(parts['axis'])}"
        grid[0, column].set_title(
            "\n".join(in_lines(of_scores + title, inches * widths[column - 1], TEXT, 2)), loc="left"
        )
        _name_parts(grid[-1, column], [shown(name) for name in names], inches * widths[column - 1] / len(names))
    figure.suptitle("\n".join(heading_of(query, PAGE - 0.2)), x=0.01, ha="left", weight="bold")
    return figure


def _draw_bars(axes: Axes, parts: Parts, position: int) -> None:
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.tick_params(axis="x", length=0)
    axes.locator_params(axis="y", nbins=3)
    axes.spines["bottom"].set_visible(False)
    if position not in parts["examples"]:
        return
    values = np.array(finite(parts["values"][list(parts["examples"]).index(position)]))
    colours = [AGAINST if value < 0 else ACCENT for value in values]
    hatches = ["////" if value < 0 else "" for value in values]
    axes.bar(range(len(values)), np.nan_to_num(values), width=0.8, color=colours, hatch=hatches, edgecolor="white",
             linewidth=0)  # fmt: skip


def _name_parts(axes: Axes, names: list[str], room: float) -> None:
    """Label bars with what differs in their names, as many as there is room for; each bar has ``room`` inches."""
    common = _common_start(names)
    step = max(1, math.ceil(len(names) / _MOST_TICKS))
    shown_names = [in_lines(name[common:], 1.3, TINY)[0] for name in names]
    places = list(range(0, len(names), step))
    axes.set_xticks(places, [shown_names[place] for place in places])
    if max(text_width(name, SMALL) for name in shown_names) > room * step - 0.05:
        axes.tick_params(axis="x", labelrotation=90, labelsize=TINY)
    if common:
        axes.set_xlabel(in_lines(f"in {names[0][: common - 1]}", 2.0, TINY)[0], fontsize=TINY, color=GREY, loc="left")


def _common_start(names: list[str]) -> int:
    """Return the length of the dotted prefix that all names have."""
    if len(names) < 2:
        return 0
    first, last = min(names), max(names)
    same = next((place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), 0)
    return first.rfind(".", 0, same) + 1
