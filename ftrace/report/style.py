"""The one look of all pictures: fonts, sizes, colours, lines that differ in grey print too, and texts from data.

A picture depends on what it shows and on nothing else: not on a reader's matplotlibrc, and no character of a text is
taken for mathematics or TeX.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.transforms import ScaledTranslation

from ftrace.report.causal_words import drawable, font_families
from ftrace.shown_text import plain

COLUMN, PAGE = 3.35, 7.0  # inches: one column of a paper, and both
TEXT, SMALL, TINY = 8.0, 7.0, 6.0  # points
ACCENT, INK, GREY, LIGHT = "#0072B2", "#222222", "#6b6b6b", "#dcdcdc"
AGAINST = "#D55E00"  # opponents, rises of a loss, whatever is below 0
_COLOURS = (ACCENT, AGAINST, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)  # Okabe and Ito, without their yellow
_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@contextmanager
def look() -> Iterator[None]:
    """Draw in the one look, from the making of a figure to its writing; settings are put back afterwards."""
    ours = {
        "font.family": list(font_families()), "font.size": TEXT, "text.parse_math": False, "text.usetex": False,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY, "axes.linewidth": 0.6,
        "axes.titlesize": TEXT, "axes.labelsize": TEXT, "axes.spines.top": False, "axes.spines.right": False,
        "axes.axisbelow": True, "axes.unicode_minus": True, "axes.formatter.use_mathtext": False,
        "xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "xtick.color": GREY, "ytick.color": GREY,
        "xtick.labelcolor": INK, "ytick.labelcolor": INK, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
        "xtick.major.size": 2.5, "ytick.major.size": 2.5, "lines.linewidth": 1.2, "lines.markersize": 3.5,
        "legend.fontsize": SMALL, "legend.frameon": False, "legend.handlelength": 2.8, "hatch.linewidth": 0.5,
        "grid.color": LIGHT, "grid.linewidth": 0.5, "figure.titlesize": TEXT,
        "pdf.fonttype": 42, "svg.hashsalt": "ftrace",  # TrueType: publishers refuse the default, Type 3
    }  # fmt: skip
    with style.context(["default", ours]):
        yield


def series(number: int) -> dict[str, Any]:
    """Return colour, line and marker of the ``number``-th method, the same in every picture.

    The first seven differ in all three, and no two of the first 49 are alike in all.
    """
    shift = number // len(_COLOURS)
    other = (number + shift) % len(_LINES)
    return {"color": _COLOURS[number % len(_COLOURS)], "linestyle": _LINES[other], "marker": _MARKERS[other]}


def shown(text: str) -> str:
    r"""Return a text from data as it can be drawn: what can't be seen, or no font has, becomes a visible escape.

    Example:
        >>> shown("a\tb\n$x^2$ \u202e\ue123")
        'a b ↵ $x^2$ \\u202e\\ue123'
    """
    return drawable(plain(text))


def score_text(value: float, digits: int = 3) -> str:
    """Write a number with its sign, a true minus.

    Example:
        >>> score_text(0.25), score_text(-3e-7), score_text(0)
        ('+0.25', '−3e-07', '0')
    """
    text = f"{value:+.{digits}g}"
    return "0" if not value else text if text[0] == "+" else f"\N{MINUS SIGN}{text[1:]}"


def text_width(text: str, points: float, weight: str = "normal") -> float:
    """Return how wide a line is drawn, in inches."""
    return sum(_advance(character, weight) for character in text) * points / 72


def in_lines(text: str, inches: float, points: float, most: int = 1, weight: str = "normal") -> list[str]:
    """Break a text into one to ``most`` lines of a width; what is left out is told by "…". Long words are cut.

    Args:
        text: A text that can be drawn; see :func:`shown`.
        inches: The width.
        points: Size of the letters.
        most: How many lines there may be.
        weight: "normal" or "bold".
    """
    lines: list[str] = []
    line = ""
    for word in text.split():
        while word and len(lines) <= most:
            joined = f"{line} {word}" if line else word
            fits = _fitting(joined, inches, points, weight)
            if fits == len(joined):
                line, word = joined, ""
            elif line:
                lines.append(line)
                line = ""
            else:
                lines.append(word[: max(fits, 1)])
                word = word[max(fits, 1) :]
    lines += [line] if line else []
    if len(lines) > most:
        last = lines[most - 1]
        last = last[: _fitting(last, inches - text_width(" …", points, weight), points, weight)]
        lines = [*lines[: most - 1], f"{last.rstrip()} …"]
    return lines or [""]


def _fitting(text: str, inches: float, points: float, weight: str) -> int:
    """Return how many of a text's first characters fit into a width."""
    width = 0.0
    for number, character in enumerate(text):
        width += _advance(character, weight) * points / 72
        if width > inches:
            return number
    return len(text)


def label_ends(axes: Axes, ends: Sequence[tuple[str, float, Mapping[str, Any]]]) -> None:
    """Label lines at the right edge, each beside its marker, moved apart where labels would overlap.

    The axes' limits and place must be settled, and the layout "constrained", which makes room for the labels.

    Args:
        axes: Where the lines are.
        ends: Each line's label, last value, and colour and marker as :func:`series` gives them.
    """
    (low, high), height = axes.get_ylim(), axes.get_position().height * axes.get_figure().get_figheight()  # type: ignore[union-attr]
    least = 1.3 * SMALL / 72 / height * (high - low)
    order = sorted(ends, key=lambda end: end[1])
    edge = axes.get_yaxis_transform()
    places = _apart([value for _, value, _ in order], least, low, high)
    for (label, _, look_of_line), place in zip(order, places, strict=True):
        colour = look_of_line["color"]
        axes.annotate(
            label, (1, place), (14, 0), xycoords=edge, textcoords="offset points", va="center", fontsize=SMALL,
            color=colour, annotation_clip=False,
        )  # fmt: skip
        beside = edge + ScaledTranslation(8 / 72, 0, axes.get_figure().dpi_scale_trans)  # type: ignore[union-attr]
        axes.plot(1, place, marker=look_of_line["marker"], color=colour, transform=beside, clip_on=False)


def _apart(values: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Move ascending values as little as is needed to be ``least`` apart, within limits if there is room."""
    groups: list[tuple[float, int]] = []  # mean of what its values want, and their number
    for value in values:
        mean, count = value, 1
        while groups and mean - least * (count - 1) / 2 < groups[-1][0] + least * (groups[-1][1] - 1) / 2 + least:
            before, number = groups.pop()
            mean, count = (before * number + mean * count) / (number + count), number + count
        groups.append((mean, count))
    places = [mean + least * (index - (count - 1) / 2) for mean, count in groups for index in range(count)]
    over = max(0.0, places[-1] - high) if places else 0.0
    under = max(0.0, low - (places[0] - over)) if places else 0.0
    return [place - over + under for place in places]


def finite(values: Sequence[float | None]) -> list[float]:
    """Return values with NaN in place of None, as matplotlib leaves gaps."""
    return [math.nan if value is None else value for value in values]


@cache
def _advance(character: str, weight: str) -> float:
    """Return how far a character moves the pen, in units of the letters' size."""
    if unicodedata.combining(character):
        return 0.0
    for family in font_families():
        font = get_font(findfont(FontProperties(family=family, weight=weight)))
        if font.get_char_index(ord(character)):
            font.set_size(100, 72)
            return float(font.load_char(ord(character)).linearHoriAdvance) / 65536 / 100
    return 1.0
