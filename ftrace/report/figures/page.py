"""A page on which texts and axes have places in inches, from the left and from above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ftrace.report.explorer.format import Example, Head, QueryChunk
from ftrace.report.style import INK, PAGE, TEXT, in_lines, shown
from ftrace.views.words import SENTINEL

MARGIN = 0.08
LINE = 0.145  # from one line of TEXT points to the next


class Page:
    """A figure as wide as a page of a paper.

    Args:
        height: In inches.
    """

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(PAGE, height))

    def write(self, left: float, down: float, text: str, **style: Any) -> None:
        """Write a line that can be drawn, its baseline ``down`` inches below the upper edge."""
        given = {"fontsize": TEXT, "color": INK, "va": "baseline", **style}
        self.figure.text(left / PAGE, 1 - down / self.height, text, **given)

    def write_lines(self, left: float, down: float, lines: Sequence[str], **style: Any) -> float:
        """Write lines below each other, and return where the next one would be."""
        for number, line in enumerate(lines):
            self.write(left, down + number * LINE, line, **style)
        return down + len(lines) * LINE

    def axes(self, left: float, down: float, width: float, height: float) -> Axes:
        """Add axes, ``down`` inches from the upper edge to their own."""
        return self.figure.add_axes(
            (left / PAGE, 1 - (down + height) / self.height, width / PAGE, height / self.height)
        )


def heading_of(query: QueryChunk, width: float, most: int = 2) -> list[str]:
    """Name a query in up to ``most`` bold lines: what it is called, and its prompt."""
    name = f"{query['name']}: " if query["name"] else ""
    prompt = "(text left out)" if query["prompt"] is None else SENTINEL.sub("____", query["prompt"])
    return in_lines(shown(f"query {query['id']}: {name}{prompt}{cut(query['cut'])}"), width, TEXT, most, "bold")


def text_of(example: Example) -> str:
    """Return an example's text as it can be drawn."""
    if example["text"] is None:
        return shown(example["name"] or "(text left out)")
    return shown(example["text"] + cut(example["cut"]))


def cut(characters: int) -> str:
    """Say how many characters were left out."""
    return f" … +{characters:,}" if characters else ""


def title_of(head: Head, method: int) -> str:
    """Name a method, with the unit of its scores."""
    of_method = head["methods"][method]
    return shown(of_method["title"]) + (f", {shown(of_method['unit'])}" if of_method["unit"] else "")
