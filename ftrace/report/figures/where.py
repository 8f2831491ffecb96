"""Picture of where a fact lives: causal heat maps beside the profile of scores by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ftrace.report.causal_words import MEDIATORS, UNITS, token_label
from ftrace.report.explorer.format import CausalProfile, CausalStack, Head, QueryChunk
from ftrace.report.figures.page import heading_of
from ftrace.report.heat_maps import HeatMap, draw_bar, draw_map, scale
from ftrace.report.style import ACCENT, GREY, PAGE, SMALL, TINY, finite, in_lines, shown, text_width

_MAPS = 3
_FIRST = tuple(MEDIATORS[name] for name in ("hidden", "mlp", "attention"))  # as Meng et al. draw them
_MOST_TICKS = 24


def draw_where(head: Head, query: QueryChunk) -> Figure | None:
    """Draw up to three causal heat maps of each stack, and below each other effects and scores by layer.

    Returns:
        The picture; None if the query was not traced.
    """
    causal = query["causal"]
    if causal is None or not any(stack["mediators"] and stack["tokens"] for stack in causal["stacks"]):
        return None
    stacks = [stack for stack in causal["stacks"] if stack["mediators"] and stack["tokens"]]
    profile = causal["profile"] if causal["profile"] and causal["profile"]["layers"] else None
    maps = [_maps(stack, len(stacks)) for stack in stacks]
    rows = [len(stack["tokens"]) for stack in stacks]
    lines = heading_of(query, PAGE - 0.2)
    notes = [
        f"probability of the answer: {_percent(causal['clean'])} undisturbed, {_percent(causal['corrupted'])} with a "
        "corrupted subject",
        *_notes(stacks, maps, profile),
    ]
    height = 0.16 * (len(lines) + len(notes)) + max(0.17 * sum(rows) + 0.5 * len(rows) + 0.35, 3.0 if profile else 1.7)
    figure = Figure(figsize=(PAGE, height), layout="constrained")
    left: Figure | SubFigure = figure
    if profile:
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(2.1, 1)).ravel()
        _draw_profile(right, profile)
    _draw_maps(left, maps, rows)
    figure.suptitle("\n".join(lines), x=0.01, ha="left", weight="bold")
    figure.supxlabel("\n".join(notes), x=0.01, ha="left", fontsize=SMALL, color=GREY)
    return figure


def _maps(stack: CausalStack, num_stacks: int) -> list[HeatMap]:
    start, end = stack["subject"]
    rows = [token_label(shown(token), of_subject=start <= place < end) for place, token in enumerate(stack["tokens"])]
    order = sorted(
        stack["mediators"], key=lambda one: _FIRST.index(one["title"]) if one["title"] in _FIRST else len(_FIRST)
    )
    maps = []
    for mediator in order[:_MAPS]:
        effects = np.array([finite(row) for row in mediator["effects"]])
        readout = np.zeros(effects.shape, bool)
        for cell in mediator["readout"]:
            readout[tuple(cell)] = True
        prefix = f"{shown(stack['name'])}: " if num_stacks > 1 else ""
        peak = mediator["peak"]
        ring = None if peak is None else (int(peak[0]), int(peak[1]))
        maps.append(HeatMap(prefix + shown(mediator["title"]), rows, effects, ring, readout))
    return maps


def _notes(
    stacks: Sequence[CausalStack], maps: Sequence[Sequence[HeatMap]], profile: CausalProfile | None
) -> list[str]:
    """Explain what is there, and nothing else."""
    flat = [heat_map for of_stack in maps for heat_map in of_stack]
    notes = ["ring: the largest effect"] if any(heat_map.ring for heat_map in flat) else []
    notes += ["*: a token of the subject"] if any(row.endswith("*") for one in flat for row in one.rows) else []
    more = {mediator["title"]: None for stack in stacks for mediator in stack["mediators"]}
    drawn = {heat_map.title.rpartition(": ")[2] for heat_map in flat}
    left_out = [shown(title) for title in more if shown(title) not in drawn]
    notes += [f"not drawn: {', '.join(left_out)}"] if left_out else []
    lines = in_lines("; ".join(notes), PAGE - 0.2, SMALL, 2) if notes else []
    for note in profile["notes"] if profile else ():
        lines += in_lines(shown(note), PAGE - 0.2, SMALL, 2)
    return lines


def _draw_maps(figure: Figure | SubFigure, maps: Sequence[Sequence[HeatMap]], rows: Sequence[int]) -> None:
    flat = [heat_map for of_stack in maps for heat_map in of_stack]
    norm = scale(flat)
    columns = max(map(len, maps))
    grid = figure.subplots(len(maps), columns, squeeze=False, height_ratios=rows)
    labels = max(text_width(row, SMALL) for of_stack in maps for row in of_stack[0].rows)
    room = (figure.bbox.width / figure.dpi - labels - 1.2) / columns
    drawn: list[Axes] = []
    for line, of_stack in zip(grid, maps, strict=True):
        for column, axes in enumerate(line):
            if column >= len(of_stack):
                axes.remove()
                continue
            heat_map = of_stack[column]
            draw_map(axes, heat_map, norm, room)
            axes.set_title("\n".join(in_lines(heat_map.title, room, SMALL, 3)), loc="left", fontsize=SMALL)
            axes.set_yticks(range(len(heat_map.rows)), heat_map.rows if column == 0 else [""] * len(heat_map.rows))
            axes.tick_params(axis="y", length=0)
            axes.set_xlabel("layer" if line is grid[-1] else "", fontsize=SMALL)
            drawn.append(axes)
    draw_bar(figure, drawn, norm, flat, f"indirect effect, {UNITS['probability'].points}")


def _draw_profile(figure: SubFigure, profile: CausalProfile) -> None:
    """Draw effects and, below them, scores by layer; what was not traced has no effect."""
    upper, lower = figure.subplots(2, 1, sharex=True)
    names = [shown(name) for name in profile["layers"]]
    places = np.arange(len(names))
    for axes, values, colour, title in (
        (upper, profile["effects"], ACCENT, "causal effect by layer"),
        (lower, profile["scores"], GREY, "score by layer"),
    ):
        axes.bar(places, np.nan_to_num(finite(values)), width=0.75, color=colour)
        for place, value in zip(places, values, strict=True):
            if value is None:
                axes.plot(place, 0, "x", color=GREY, markersize=3, clip_on=False)
        axes.axhline(0, color=GREY, linewidth=0.6)
        axes.set_title(title, loc="left", fontsize=SMALL)
        axes.locator_params(axis="y", nbins=4)
        axes.grid(axis="y")
    if any(value is None for values in (profile["effects"], profile["scores"]) for value in values):
        upper.set_title("\N{MULTIPLICATION SIGN}: not traced", loc="right", fontsize=TINY, color=GREY)
    step = max(1, math.ceil(len(names) / _MOST_TICKS))
    labels = [in_lines(name, 1.4, TINY)[0] for name in names]
    lower.set_xticks(places[::step], labels[::step], fontsize=TINY)
    if max(map(len, labels)) > 2:
        lower.tick_params(axis="x", labelrotation=90)
    if profile["correlation"] is not None:
        text = f"rank correlation {profile['correlation']:+.2f}".replace("-", "\N{MINUS SIGN}")
        figure.supxlabel(text, fontsize=SMALL)


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.3g}%"
