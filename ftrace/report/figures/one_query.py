"""Picture of one query: what was asked and said, when it was learned, and what taught it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from ftrace.report.explorer.format import Answered, Example, Head, Loss, QueryChunk
from ftrace.report.figures.page import LINE, MARGIN, Page, heading_of, text_of, title_of
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
)

_PROPONENTS, _OPPONENTS = 6, 4
_BARS, _SCORE, _TEXT = (0.36, 1.25), 2.25, 2.35  # where bars begin and how wide they are; where scores end, texts begin
_CURVE = (2.3, 1.0)  # inches


@dataclass(frozen=True)
class _Row:
    """One example of the list, with the lines in which its text is written."""

    place: str
    score: float
    lines: Sequence[str]
    about: str
    states_fact: bool

    @property
    def height(self) -> float:
        return len(self.lines) * LINE + 0.19


def draw_query(head: Head, query: QueryChunk) -> Figure | None:
    """Draw a query with its strongest examples, as the first method that knows it has them.

    Returns:
        The picture; None if no method knows the query.
    """
    method = next((number for number, lists in enumerate(query["lists"]) if lists is not None), None)
    if method is None:
        return None
    lists = query["lists"][method]
    assert lists is not None
    proponents = _rows(query, method, lists["proponents"], _PROPONENTS)
    opponents = _rows(query, method, lists["opponents"] or (), _OPPONENTS)
    has_curve = query["loss"] is not None and bool(query["loss"]["steps"])
    width = PAGE - 2 * MARGIN - (_CURVE[0] + 0.8 if has_curve else 0)
    heading, said = heading_of(query, width, most=4), _said(query, width)
    above = max((len(heading) + len(said)) * LINE + 0.3, _CURVE[1] + 0.55 if has_curve else 0.0)
    sections = [section for section in (proponents, opponents) if section]
    height = above + sum(row.height for rows in sections for row in rows) + 0.32 * len(sections) + 0.1
    page = Page(height)
    down = page.write_lines(MARGIN, 0.17, heading, weight="bold")
    for number, (line, colour) in enumerate(said):
        page.write(MARGIN, down + number * LINE, line, color=colour)
    if has_curve and query["loss"] is not None:
        _draw_curve(page, query["loss"], query["answered"])
    unit, scores = title_of(head, method), [row.score for rows in sections for row in rows if not math.isnan(row.score)]
    limits = (min(0.0, *scores, 0.0), max(0.0, *scores, 0.0)) if any(scores) else (0.0, 1.0)
    down = above
    for name, rows in (("proponents", proponents), ("opponents", opponents)):
        if rows:
            (line,) = in_lines(f"{name}, by {unit}", PAGE - 2 * MARGIN, SMALL)
            page.write(MARGIN, down + 0.12, line, color=GREY, fontsize=SMALL)
            down = _draw_rows(page, rows, down + 0.22, limits) + 0.1
    return page.figure


def _rows(query: QueryChunk, method: int, listed: Sequence[int], most: int) -> list[_Row]:
    """Make rows of the strongest examples; near-duplicates of one that is listed are counted beside it."""
    first: dict[int, int] = {}
    alike: dict[int, int] = {}
    for position in listed:
        kind = query["examples"][position]["alike"]
        if kind in first:
            alike[kind] += 1
        elif len(first) < most:
            first[kind], alike[kind] = position, 0
    rows = []
    for kind, position in first.items():
        example = query["examples"][position]
        place = example["places"][method]
        score = math.nan if place is None or place["score"] is None else place["score"]
        rank = None if place is None else place["rank"] if score >= 0 else place["rank_from_below"]
        lines = in_lines(text_of(example), PAGE - _TEXT - 2 * MARGIN, TEXT, 2)
        about = _about(example, alike[kind])
        rows.append(_Row("" if rank is None else f"{rank:,}", score, lines, about, bool(example["states_fact"])))
    return rows


def _about(example: Example, alike: int) -> str:
    kind = "states the fact" if example["states_fact"] else example["kind"] or ""
    more = f"{alike:,} listed like it" if alike else ""
    return shown(" · ".join(part for part in (f"example {example['id']}", kind, more) if part))


def _said(query: QueryChunk, width: float) -> list[tuple[str, str]]:
    """Say what the answer is, what the model said, and what speaks against the scores, with a colour for each line."""
    said, lines = query["said"], []
    answer = "(left out)" if query["answer"] is None else query["answer"]
    lines += [(line, INK) for line in in_lines(shown(f"answer: {answer}"), width, TEXT, 2)]
    if said is not None:
        verdict = {True: "right", False: "wrong", None: ""}[said["right"]]
        chance = "" if said["probability"] is None else f"{100 * said['probability']:.3g}%"
        about = ", ".join(part for part in (verdict, chance) if part)
        text = "(left out)" if said["text"] is None else said["text"]
        colour = AGAINST if said["right"] is False else INK
        lines += [
            (line, colour)
            for line in in_lines(shown(f"the model said{f' ({about})' if about else ''}: {text}"), width, TEXT, 2)
        ]
    for warning in query["warnings"]:
        lines += [(line, GREY) for line in in_lines(shown(warning), width, TEXT, 3)]
    return lines


def _draw_curve(page: Page, loss: Loss, answered: Answered | None) -> None:
    axes = page.axes(PAGE - MARGIN - _CURVE[0], 0.1, *_CURVE)
    steps, values = np.array(loss["steps"], float), np.array(finite(loss["values"]))
    axes.plot(steps, values, color=ACCENT)
    top = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    axes.set_ylim(0, 1.08 * top or 1)
    axes.set_xlabel("optimizer step", fontsize=SMALL, labelpad=1)
    axes.set_ylabel("loss, nats", fontsize=SMALL)
    axes.locator_params(nbins=4)
    if answered is None:
        return
    if answered["state"] == "never":
        axes.set_title("never right", fontsize=SMALL, loc="right", pad=-6)
        return
    learned, state = answered["step"], answered["state"]
    mark = f"known at step {learned:,}" if state == "known" else f"learned at step {learned:,}"
    if state in ("learned again", "forgotten"):
        mark = f"first right at step {learned:,}" + (", forgotten" if state == "forgotten" else "")
    axes.axvline(learned, color=INK, linewidth=0.7, linestyle=(0, (3, 2)))
    is_left = learned <= steps[0] + 0.5 * (steps[-1] - steps[0])
    axes.annotate(
        mark, (learned, 1), (3 if is_left else -3, -1), xycoords=axes.get_xaxis_transform(),
        textcoords="offset points", ha="left" if is_left else "right", va="top", fontsize=SMALL,
    )  # fmt: skip
    at = int(np.searchsorted(steps, learned))
    if at < len(steps):
        axes.plot(steps[at], values[at], "o", color=ACCENT, markeredgecolor=INK, markeredgewidth=0.5)


def _draw_rows(page: Page, rows: Sequence[_Row], down: float, limits: tuple[float, float]) -> float:
    """Draw a section of the list, and return where it ends."""
    heights = [row.height for row in rows]
    tops = down + np.concatenate([[0.0], np.cumsum(heights)[:-1]])
    axes = page.axes(_BARS[0], down, _BARS[1], sum(heights))
    axes.set_ylim(down + sum(heights), down)
    scores = np.array([row.score for row in rows])
    axes.set_xlim(limits)
    colours = [AGAINST if score < 0 else ACCENT for score in scores]
    axes.barh(tops + 0.075, np.nan_to_num(scores), height=0.1, color=colours)
    axes.axvline(0, color=GREY, linewidth=0.6)
    axes.set_axis_off()
    for row, top in zip(rows, tops, strict=True):
        baseline = top + 0.11
        page.write(_BARS[0] - 0.06, baseline, row.place, ha="right", color=GREY, fontsize=SMALL)
        page.write(_SCORE, baseline, "?" if math.isnan(row.score) else score_text(row.score), ha="right")
        after = page.write_lines(_TEXT, baseline, row.lines)
        weight, colour = ("bold", ACCENT) if row.states_fact else ("normal", GREY)
        page.write(_TEXT, after - 0.025, row.about, color=colour, weight=weight, fontsize=TINY)
    return down + sum(heights)
