"""Picture of a query: where the model reads a fact, where proponents wrote it, and which examples these are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from ftrace.causal.joined import Joined, JoinedQuery, Layer
from ftrace.causal.profiles import IN_WORDS
from ftrace.causal.prompt_trace import OUTCOMES
from ftrace.report.causal_plots import readout_of
from ftrace.report.causal_words import UNITS, mediator_title, token_label
from ftrace.report.heat_maps import HeatMap, draw_bar, draw_map, scale
from ftrace.report.joined_tables import signed
from ftrace.report.pictures import save_png_and_pdf
from ftrace.report.style import ACCENT, GREY, INK, PAGE, SMALL, TEXT, in_lines, look, score_text, shown

_EFFECT, _SCORE = ACCENT, GREY
_LINE, _MARGIN = 0.15, 0.1  # inches
_COLUMNS = (_MARGIN, 0.95, 1.8, 2.45)  # where the columns of the list of proponents begin
_UNITS = {"dot": "nats", "update": "nats"}
_MOST_TICKS = 20


@dataclass(frozen=True)
class Teacher:
    """One of a query's proponents.

    Args:
        example_id: Id of the example.
        score: Its score for the query.
        sentence: Its text.
        states_the_fact: Whether it states the query's fact.
    """

    example_id: int
    score: float
    sentence: str
    states_the_fact: bool


def plot_joined(query: JoinedQuery, joined: Joined, proponents: Sequence[Teacher], file: Path) -> tuple[Path, Path]:
    """Draw a query's causal effects by token and layer, both layer profiles, and its proponents.

    At the top left is a heat map of the mediator's indirect effects for each stack. At the top right are two profiles
    over the same layers: the effects reduced over tokens, and below them the scores of the query's proponents. At the
    bottom are the strongest proponents.

    Args:
        query: The query, one of those in ``joined``.
        joined: The layers, the mediator and the kind of scores.
        proponents: The proponents to be listed, strongest first.
        file: Path of the picture; endings ``.png`` and ``.pdf`` are added.

    Returns:
        The PNG and the PDF.

    Raises:
        ValueError: If there is no finite effect to draw.
    """
    unit = UNITS[joined.outcome]
    maps = _heat_maps(query, joined)
    heading = _heading(query, joined)
    lines = _lines(proponents)
    rows = sum(len(heat_map.rows) for heat_map in maps.values())
    above = max(0.18 * rows + 0.45 * len(maps) + 0.4, 2.8) + 0.16 * sum(line.count("\n") + 1 for line in heading)
    below = _LINE * (sum(len(sentence) for *_, sentence in lines) + 1.75) + _MARGIN
    with look():
        figure = Figure(figsize=(PAGE, above + below), layout="constrained")
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(above, below)).ravel()
        left, right = upper.subfigures(1, 2, squeeze=False, width_ratios=(1.2, 1)).ravel()
        upper.suptitle("\n".join(heading), x=0.01, ha="left", parse_math=False)
        _draw_maps(left, maps, unit.points)
        _draw_profiles(right, query, joined)
        _write_proponents(lower, below, _with_unit(joined.kind), lines)
        return save_png_and_pdf(figure, file)


def _heat_maps(query: JoinedQuery, joined: Joined) -> dict[str, HeatMap]:
    maps: dict[str, HeatMap] = {}
    for stack, of_stack in query.trace.stacks.items():
        start, end = of_stack.subject
        tokens = enumerate(of_stack.tokens)
        labels = [token_label(token, of_subject=start <= position < end) for position, token in tokens]
        effects = UNITS[joined.outcome].factor * query.trace.indirect_effect(stack, joined.mediator, joined.outcome).T
        title = mediator_title(joined.mediator)
        title = f"{stack}: {title}" if len(query.trace.stacks) > 1 else title
        maps[stack] = HeatMap(title, labels, effects, readout=readout_of(query.trace, stack, joined.mediator))
    return maps


def _heading(query: JoinedQuery, joined: Joined) -> list[str]:
    trace, unit, outcome_number = query.trace, UNITS[joined.outcome], OUTCOMES.index(joined.outcome)
    answer = trace.answers[0].strip() if trace.answers else "?"
    clean, corrupted = (unit.text(float(run[outcome_number])) for run in (trace.clean, trace.corrupted))
    asked = in_lines(shown(f"query {query.query_id}: {trace.prompt.strip()}"), PAGE - 2 * _MARGIN, TEXT, 2)
    (answered,) = in_lines(shown(f"answer: {answer}"), PAGE / 3, TEXT)
    return [*asked, f"{answered}   ·   {unit.name}: P = {clean}, with a corrupted subject P* = {corrupted}"]


def _draw_maps(figure: SubFigure, maps: dict[str, HeatMap], points: str) -> None:
    norm = scale(list(maps.values()))
    heights = [len(heat_map.rows) for heat_map in maps.values()]
    panels = figure.subplots(len(maps), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, heat_map in zip(panels, maps.values(), strict=True):
        draw_map(axes, heat_map, norm)
        axes.set_title(heat_map.title, loc="left")
        axes.set_yticks(range(len(heat_map.rows)), heat_map.rows, parse_math=False)
    panels[-1].set_xlabel("layer")
    draw_bar(figure, list(panels), norm, list(maps.values()), f"indirect effect, {points}")


def _draw_profiles(figure: SubFigure, query: JoinedQuery, joined: Joined) -> None:
    unit = UNITS[joined.outcome]
    effects, scores = figure.subplots(2, 1, sharex=True)
    layers = joined.layers
    positions = np.arange(len(layers)) + np.cumsum([_begins_stack(layers, index) for index in range(len(layers))])
    _draw_bars(effects, positions, unit.factor * query.effects, _EFFECT)
    _draw_bars(scores, positions, query.scores, _SCORE)
    width = PAGE / 2.2 - 0.5
    effects.set_title("\n".join(in_lines(f"causal effect, {IN_WORDS[joined.reduction]}", width, TEXT, 3)), loc="left")
    effects.set_ylabel(unit.points, fontsize=SMALL)
    share = f"{query.share_outside:.0%}".replace("-", "\N{MINUS SIGN}")
    outside = "" if math.isnan(query.share_outside) else f"; {share} outside of these layers"
    scores.set_title("\n".join(in_lines(f"score of {joined.summed_over}{outside}", width, TEXT, 3)), loc="left")
    scores.set_ylabel(_with_unit(joined.kind), fontsize=SMALL)
    several = len({layer.stack for layer in layers}) > 1
    step = max(1, math.ceil(len(layers) / _MOST_TICKS))
    ticks = [index for index, layer in enumerate(layers) if layer.number % step == 0]
    scores.set_xticks(positions[ticks], [str(layers[index].number) for index in ticks])
    if several:
        for stack in dict.fromkeys(layer.stack for layer in layers):
            of_stack = positions[[layer.stack == stack for layer in layers]]
            scores.annotate(
                stack, (float(of_stack.mean()), 0), (0, -16), xycoords=scores.get_xaxis_transform(),
                textcoords="offset points", ha="center", va="top", fontsize=SMALL,
            )  # fmt: skip
    scores.set_xlabel("layer", labelpad=14 if several else 4)
    if not math.isnan(query.correlation):
        figure.supxlabel(f"rank correlation of both {signed(query.correlation)}", fontsize=TEXT)


def _with_unit(kind: str) -> str:
    return f"{kind} ({_UNITS[kind]})" if kind in _UNITS else kind


def _begins_stack(layers: Sequence[Layer], index: int) -> int:
    """Return 1 if a layer begins another stack, before which a gap is left, and else 0."""
    return int(index > 0 and layers[index].stack != layers[index - 1].stack)


def _draw_bars(axes: Axes, positions: np.ndarray, values: np.ndarray, colour: str) -> None:
    axes.bar(positions, values, color=colour, width=0.75)
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y")


def _lines(proponents: Sequence[Teacher]) -> list[tuple[str, str, str, list[str]]]:
    """Return each proponent's score, whether it states the fact, its id, and its sentence broken into lines."""
    width = PAGE - _COLUMNS[-1] - _MARGIN
    return [
        (
            score_text(proponent.score),
            "yes" if proponent.states_the_fact else "no",
            str(proponent.example_id),
            in_lines(shown(proponent.sentence), width, TEXT, 2),
        )
        for proponent in proponents
    ]


def _write_proponents(
    figure: SubFigure, height: float, kind: str, lines: Sequence[tuple[str, str, str, list[str]]]
) -> None:
    def write(column: int, down: float, text: str, colour: str = INK, weight: str = "normal") -> None:
        figure.text(
            _COLUMNS[column] / PAGE, 1 - down / height, text, va="baseline", fontsize=TEXT, parse_math=False,
            color=colour, weight=weight,
        )  # fmt: skip

    for column, name in enumerate((kind, "states the fact", "example", "what taught it: the strongest proponents")):
        write(column, _LINE, name, GREY)
    down = 2.25 * _LINE
    for score, states, example, sentence in lines:
        write(0, down, score)
        write(2, down, example, GREY)
        write(1, down, states, *((ACCENT, "bold") if states == "yes" else ()))
        for line in sentence:
            write(3, down, line)
            down += _LINE
