"""Picture of the strongest examples, token by token: colour, underline and number tell what each adds to the score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ftrace.report.explorer.format import ExampleTokens, Head, QueryChunk, Tokens, TokenSequence
from ftrace.report.figures.page import LINE, MARGIN, Page, heading_of, title_of
from ftrace.report.style import ACCENT, GREY, INK, PAGE, SMALL, TEXT, TINY, in_lines, score_text, shown, text_width

_EXAMPLES = 6
_LINES = 4  # of a sequence
_LEFT, _LINE, _GAP = 0.62, 0.31, 0.05  # inches
_COLOURS = colormaps["RdBu_r"]
Placed = tuple[float, float, str, float | None]  # left, width, what is written, value


def draw_tokens(head: Head, query: QueryChunk) -> Figure | None:
    """Draw the tokens of a query's strongest examples on one scale of colours.

    Colour isn't needed: an underline is as thick as the value is large, whole where it is positive and broken where it
    is negative, and the number stands below it.

    Returns:
        The picture; None if tokens were not taken for this query.
    """
    tokens = query["tokens"]
    if tokens is None or not tokens["examples"]:
        return None
    chosen = tokens["examples"][:_EXAMPLES]
    largest = max((abs(value) for value in _values(chosen)), default=0.0) or 1.0
    exponent = math.floor(math.log10(largest)) if not 1 <= largest < 100 else 0
    laid_out = [[_laid_out(sequence, exponent) for sequence in example["sequences"]] for example in chosen]
    notes = _notes(head, tokens, exponent, len(tokens["examples"]) - len(chosen))
    heading = heading_of(query, PAGE - 2 * MARGIN)
    above = (len(heading) + len(notes)) * LINE + 0.3
    rows = sum(len(lines) for example in laid_out for lines, _ in example)
    page = Page(above + rows * _LINE + len(chosen) * 0.3 + 0.05)
    down = page.write_lines(MARGIN, 0.17, heading, weight="bold")
    page.write_lines(MARGIN, down, notes, color=GREY, fontsize=SMALL)
    down = above
    for example, sequences in zip(chosen, laid_out, strict=True):
        of_query = query["examples"][example["example"]]
        states = bool(of_query["states_fact"])
        total = "?" if example["total"] is None else score_text(example["total"])
        line = f"example {of_query['id']}{' · states the fact' if states else ''} · sum {total}"
        colour, weight = (ACCENT, "bold") if states else (GREY, "normal")
        page.write(MARGIN, down, shown(line), fontsize=TINY, color=colour, weight=weight)
        down += 0.2
        for sequence, (lines, more) in zip(example["sequences"], sequences, strict=True):
            page.write(MARGIN, down, in_lines(shown(sequence["name"]), _LEFT - 0.12, SMALL)[0], fontsize=SMALL,
                       color=GREY)  # fmt: skip
            for number, placed in enumerate(lines):
                _draw_line(page, placed, down, largest, exponent, more if number == len(lines) - 1 else 0)
                down += _LINE
        down += 0.1
    return page.figure


def _values(examples: Sequence[ExampleTokens]) -> Iterator[float]:
    return (
        value
        for example in examples
        for sequence in example["sequences"]
        for value in sequence["values"]
        if value is not None
    )


def _notes(head: Head, tokens: Tokens, exponent: int, more: int) -> list[str]:
    snapshot = f" at {tokens['snapshot']}" if tokens["snapshot"] else ""
    said = f"strongest by {title_of(head, tokens['method'])}; products{shown(snapshot)}. {shown(tokens['note'])}"
    said += f" Numbers are in 1e{exponent:+03d}." if exponent else ""
    said += f" {more} more in the report." if more else ""
    return in_lines(said, PAGE - 2 * MARGIN, SMALL, 3)


def _laid_out(sequence: TokenSequence, exponent: int) -> tuple[list[list[Placed]], int]:
    """Place tokens in lines; of a longer sequence, return how many don't fit."""
    lines: list[list[Placed]] = [[]]
    right = PAGE - MARGIN - 0.55  # room for how many are left out
    left = _LEFT
    for number, (token, value) in enumerate(zip(sequence["tokens"], sequence["values"], strict=True)):
        text = in_lines(shown(token).strip(" ").replace(" ", "␣") or "␣", right - _LEFT, TEXT)[0]
        width = max(text_width(text, TEXT), text_width(_number(value, exponent), TINY)) * 1.03 + 0.02
        if left + width > right and lines[-1]:
            if len(lines) == _LINES:
                return lines, len(sequence["tokens"]) - number
            lines.append([])
            left = _LEFT
        lines[-1].append((left, width, text, value))
        left += width + _GAP
    return lines, 0


def _number(value: float | None, exponent: int) -> str:
    if value is None:
        return "?"
    text = f"{value / 10.0**exponent:+.2f}"
    return "0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _draw_line(page: Page, placed: Sequence[Placed], down: float, largest: float, exponent: int, left_out: int) -> None:
    """Draw one line of tokens, whose baseline is ``down`` inches from above."""

    def box(left: float, top: float, width: float, height: float, colour: object) -> None:
        page.figure.add_artist(
            Rectangle(
                (left / PAGE, 1 - (top + height) / page.height), width / PAGE, height / page.height, facecolor=colour,
                edgecolor="none", transform=page.figure.transFigure, zorder=0,
            )
        )  # fmt: skip

    for left, width, text, value in placed:
        share = 0.0 if value is None else value / largest
        box(left - 0.015, down - 0.105, width + 0.03, 0.14, _COLOURS(0.5 + 0.4 * share))
        page.write(left + width / 2, down, text, ha="center", color="white" if abs(share) > 0.8 else INK)
        thick = 0.004 + 0.028 * abs(share)
        pieces = 1 if share >= 0 else max(2, round(width / 0.06))
        for piece in range(pieces if share else 0):
            step = (width + 0.03) / pieces
            box(left - 0.015 + piece * step, down + 0.04, step * (1 if pieces == 1 else 0.6), thick, INK)
        page.write(left + width / 2, down + 0.145, _number(value, exponent), ha="center", color=GREY, fontsize=TINY)
    if left_out:
        end = placed[-1][0] + placed[-1][1] + 0.08
        page.write(end, down, f"… +{left_out:,}", color=GREY, fontsize=SMALL)
