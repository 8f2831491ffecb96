"""Picture of methods side by side: the first ten of each, and how many of the first k they share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ftrace.report.explorer.format import Head, QueryChunk
from ftrace.report.figures.page import heading_of
from ftrace.report.style import (
    ACCENT,
    GREY,
    PAGE,
    SMALL,
    TEXT,
    TINY,
    in_lines,
    label_ends,
    series,
    shown,
    text_width,
)

_FIRST = 10


def draw_comparison(head: Head, query: QueryChunk) -> Figure | None:
    """Draw the first ten of each method with lines between places of one example, and what they share by k.

    Returns:
        The picture; None if fewer than two methods know the query.
    """
    known = [number for number, lists in enumerate(query["lists"]) if lists is not None and lists["proponents"]]
    if len(known) < 2:
        return None
    figure = Figure(figsize=(PAGE, 3.5), layout="constrained")
    slopes, curves = figure.subplots(1, 2, width_ratios=(min(1.0 + 0.45 * len(known), 3.0), 1.3))
    _draw_slopes(slopes, head, query, known)
    _draw_overlaps(curves, head, query, known)
    figure.suptitle("\n".join(heading_of(query, PAGE - 0.2)), x=0.01, ha="left", weight="bold")
    without = [shown(head["methods"][number]["title"]) for number in range(len(query["lists"])) if number not in known]
    facts = any(example["states_fact"] is not None for example in query["examples"])
    notes = ["numbers: ids of examples", "→ 70: the rank that the next method gives it"]
    notes += ["blue: states the fact"] * facts + [f"don't know the query: {', '.join(without)}"] * bool(without)
    figure.supxlabel("\n".join(in_lines("; ".join(notes), PAGE - 0.2, SMALL, 3)), x=0.01, ha="left", fontsize=SMALL,
                     color=GREY)  # fmt: skip
    figure.draw_without_rendering()
    _label_overlaps(curves, head, query, known)
    return figure


def _proponents(query: QueryChunk, method: int) -> Sequence[int]:
    lists = query["lists"][method]
    assert lists is not None
    return lists["proponents"]


def _draw_slopes(axes: Axes, head: Head, query: QueryChunk, known: Sequence[int]) -> None:
    firsts = [list(_proponents(query, method)[:_FIRST]) for method in known]
    longest = max(map(len, firsts))
    for column, first in enumerate(firsts):
        for row, position in enumerate(first):
            example = query["examples"][position]
            colour = ACCENT if example["states_fact"] else GREY
            if column + 1 < len(known):
                after = firsts[column + 1]
                if position in after:
                    axes.plot(
                        (column, column + 1), (row + 1, after.index(position) + 1), color=colour, zorder=1,
                        linewidth=1.3 if example["states_fact"] else 0.8,
                    )  # fmt: skip
                else:
                    place = example["places"][known[column + 1]]
                    rank = "?" if place is None or place["rank"] is None else f"{place['rank']:,}"
                    half = text_width(shown(example["id"]), TINY) / 2 * 72 + 3
                    axes.annotate(
                        f"→ {rank}", (column, row + 1), (half, 0), textcoords="offset points", va="center",
                        fontsize=TINY - 1, color=GREY,
                    )  # fmt: skip
            axes.text(
                column, row + 1, shown(example["id"]), ha="center", va="center", fontsize=TINY, color=colour, zorder=2,
                weight="bold" if example["states_fact"] else "normal",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
    width = 3.6 / len(known)
    titles = ["\n".join(in_lines(shown(head["methods"][method]["title"]), width, SMALL, 2)) for method in known]
    axes.set_xticks(range(len(known)), titles)
    axes.set_yticks(range(1, longest + 1))
    axes.set_ylabel("place")
    axes.set_xlim(-0.35, len(known) - 0.65)
    axes.set_ylim(longest + 0.6, 0.4)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def overlaps(query: QueryChunk, first: int, other: int) -> np.ndarray:
    """Return which share of the first k two methods have in common, for k from 1 to the shorter list's length."""
    lists = [_proponents(query, method) for method in (first, other)]
    depth = min(map(len, lists))
    places: dict[int, list[int]] = {}
    for listed in lists:
        for place, position in enumerate(listed[:depth]):
            places.setdefault(position, []).append(place)
    shared = np.zeros(depth)
    for both in places.values():
        if len(both) == 2:  # shared from the later of the two places on
            shared[max(both)] += 1
    return np.cumsum(shared) / np.arange(1, depth + 1)


def _draw_overlaps(axes: Axes, head: Head, query: QueryChunk, known: Sequence[int]) -> None:
    deepest = 1
    for method in known[1:]:
        share = 100 * overlaps(query, known[0], method)
        deepest = max(deepest, len(share))
        style = series(method)
        axes.plot(np.arange(1, len(share) + 1), share, markevery=max(1, len(share) // 5), **style)
    axes.set_xlim(0, deepest + 0.5)
    axes.set_ylim(0, 102)
    axes.set_xlabel("k")
    first = shown(head["methods"][known[0]]["title"])
    axes.set_title("\n".join(in_lines(f"percent of the first k shared with {first}", 2.0, TEXT, 3)), loc="left")
    axes.grid(axis="y")


def _label_overlaps(axes: Axes, head: Head, query: QueryChunk, known: Sequence[int]) -> None:
    ends = []
    for method in known[1:]:
        share = 100 * overlaps(query, known[0], method)
        lines = in_lines(shown(head["methods"][method]["title"]), 0.9, SMALL, 2)
        ends.append(("\n".join(lines), float(share[-1]), series(method)))
    label_ends(axes, ends)
