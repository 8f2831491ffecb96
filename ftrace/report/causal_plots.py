"""Pictures of causal tracing: heat maps of single prompts and of averages, and lines with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ftrace.causal.averages import Averages, EffectGrid, StackAverages
from ftrace.causal.prompt_trace import OUTCOMES, Outcome, PromptTrace, Stack
from ftrace.causal.readout import readout_cells
from ftrace.evaluation import Estimate
from ftrace.report.causal_words import UNITS, Unit, in_order, mediator_title, token_label
from ftrace.report.heat_maps import HeatMap, draw_heat_maps, largest, set_heading
from ftrace.report.pictures import save_png_and_pdf
from ftrace.report.style import GREY, SMALL, TEXT, look, series


def plot_prompt(trace: PromptTrace, outcome: Outcome, file: Path) -> tuple[Path, Path]:
    """Draw the indirect effects of one prompt: a heat map for each mediator, tokens down, layers across.

    Tokens of the subject are marked by a star. An encoder-decoder's stacks are drawn side by side.

    Args:
        trace: The trace of the prompt.
        outcome: The outcome whose effects are drawn.
        file: Path of the picture; endings ``.png`` and ``.pdf`` are added.

    Returns:
        The PNG and the PDF.

    Raises:
        ValueError: If the prompt was not traced, or the outcome was not computed.
    """
    if not trace.stacks:
        why = f": {trace.reason}" if trace.reason else ""
        raise ValueError(f"expected a prompt that was traced, found {trace.name!r} with status {trace.status!r}{why}")
    unit = UNITS[outcome]
    stacks: dict[str, dict[str, HeatMap]] = {}
    for stack, trace_of_stack in trace.stacks.items():
        start, end = trace_of_stack.subject
        tokens = enumerate(trace_of_stack.tokens)
        rows = [token_label(token, of_subject=start <= position < end) for position, token in tokens]
        stacks[stack] = {
            mediator: HeatMap(
                _titled(mediator, stack, len(trace.stacks)),
                rows,
                unit.factor * trace.indirect_effect(stack, mediator, outcome).T,
                readout=readout_of(trace, stack, mediator),
            )
            for mediator in in_order(trace_of_stack.restored)
        }
    number = OUTCOMES.index(outcome)
    total = Estimate(trace.total_effect(outcome), math.nan, math.nan)
    answer = trace.answers[0].strip() if trace.answers else "?"
    heading = [
        f"{trace.prompt.strip()} → {answer}",
        _of_runs(unit, trace.clean[number], trace.corrupted[number], total),
    ]
    with look():
        starred = any(row.endswith("*") for maps in stacks.values() for one in maps.values() for row in one.rows)
        footnote = "* a token of the subject" if starred else ""
        figure = draw_heat_maps(stacks, heading, f"indirect effect, {unit.points}", footnote)
        return save_png_and_pdf(figure, file)


def plot_average(averages: Averages, file: Path, outcome: Outcome = "probability") -> tuple[Path, Path]:
    """Draw average indirect effects: a heat map for each mediator, groups of positions down, layers across.

    Each mediator has a scale of colours of its own, as in the published pictures. A ring marks each mediator's peak;
    see :meth:`~ftrace.causal.averages.StackAverages.peak`.

    Args:
        averages: Averages over prompts.
        file: Path of the picture; endings ``.png`` and ``.pdf`` are added.
        outcome: The outcome whose effects are drawn.

    Returns:
        The PNG and the PDF.

    Raises:
        ValueError: If the outcome is not known of the prompts.
    """
    unit = UNITS[outcome]
    stacks: dict[str, dict[str, HeatMap]] = {}
    for stack, of_stack in averages.stacks.items():
        shown = np.flatnonzero(of_stack.num_prompts).tolist()
        rows = _group_labels(averages, of_stack)
        stacks[stack] = {}
        for mediator in in_order(of_stack.effects):
            title, ring = _titled(mediator, stack, len(averages.stacks)), None
            peak = of_stack.peak(mediator, outcome)
            if peak is not None:
                title += f"\npeak {unit.effect(peak.effect)} in layer {peak.layer}"
                ring = (shown.index(of_stack.groups.index(peak.group)), peak.layer)
            effects = unit.factor * of_stack.effects[mediator][outcome].mean[shown]
            stacks[stack][mediator] = HeatMap(title, rows, effects, ring, of_stack.readout(mediator)[shown])
    has_peak = any(heat_map.ring for maps in stacks.values() for heat_map in maps.values())
    with look():
        figure = draw_heat_maps(
            stacks,
            _heading(averages, outcome),
            unit.points,
            _footnote(averages, [*(["ring: the peak"] if has_peak else []), *_ends(averages, "[ , ]: 95% interval")]),
            by_mediator=True,
        )
        return save_png_and_pdf(figure, file)


def plot_lines(averages: Averages, file: Path, outcome: Outcome = "probability") -> tuple[Path, Path]:
    """Draw average indirect effects as lines over layers, a panel for each group of positions, with 95% intervals.

    Args:
        averages: Averages over prompts.
        file: Path of the picture; endings ``.png`` and ``.pdf`` are added.
        outcome: The outcome whose effects are drawn.

    Returns:
        The PNG and the PDF.

    Raises:
        ValueError: If the outcome is not known of the prompts.
    """
    unit = UNITS[outcome]
    of_stacks = averages.stacks.values()
    largest(by_outcome[outcome].mean for of_stack in of_stacks for by_outcome in of_stack.effects.values())
    mediators = in_order(dict.fromkeys(mediator for of_stack in of_stacks for mediator in of_stack.effects))
    panels = []
    for stack, of_stack in averages.stacks.items():
        prefix = f"{stack}: " if len(averages.stacks) > 1 else ""
        shown = np.flatnonzero(of_stack.num_prompts).tolist()
        labels = _group_labels(averages, of_stack)
        panels += [(of_stack, row, prefix + name) for row, name in zip(shown, labels, strict=True)]
    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    with look():
        figure = Figure(figsize=(max(2.33 * across, 4.66), 1.6 * down + 1.1), layout="constrained")
        grid = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.remove()
        handles = {}
        for number, (of_stack, row, title) in enumerate(panels):
            axes = grid[number]
            for mediator in in_order(of_stack.effects):
                effects, colour_number = of_stack.effects[mediator][outcome], mediators.index(mediator)
                handles[mediator] = _draw_line(axes, effects, row, unit, colour_number)
            axes.set_title(title, loc="left")
            axes.set_xlabel("layer" if number + across >= len(panels) else "")
        figure.supylabel(f"average indirect effect, {unit.points}", fontsize=TEXT)
        set_heading(figure, _heading(averages, outcome))
        figure.legend(
            [handles[mediator] for mediator in mediators], [mediator_title(mediator) for mediator in mediators],
            loc="outside lower center", ncols=min(len(mediators), max(across, 2)),
            title=_footnote(averages, _ends(averages, "bands: 95% intervals")) or None, title_fontsize=SMALL,
        )  # fmt: skip
        return save_png_and_pdf(figure, file)


def _draw_line(axes: Axes, effects: EffectGrid, row: int, unit: Unit, order: int) -> Any:
    """Draw one group's effects over layers, with a band for the interval, and return the line."""
    mean, low, high = (unit.factor * values[row] for values in (effects.mean, effects.low, effects.high))
    layers = np.arange(len(mean))
    style = series(order)
    axes.axhline(0, color=GREY, linewidth=0.6, zorder=0)
    axes.fill_between(layers, low, high, color=style["color"], alpha=0.15, linewidth=0)
    (line,) = axes.plot(layers, mean, **style, markevery=max(1, len(layers) // 8))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="y")
    return line


def _titled(mediator: str, stack: str, num_stacks: int) -> str:
    return mediator_title(mediator) if num_stacks == 1 else f"{stack}: {mediator_title(mediator)}"


def _group_labels(averages: Averages, of_stack: StackAverages) -> list[str]:
    """Name the groups that some prompt has, with the number of these prompts if not all have it."""
    num_traced = averages.num_prompts["traced"]
    counts = zip(of_stack.groups, of_stack.num_prompts.tolist(), strict=True)
    return [name if count == num_traced else f"{name} ({count})" for name, count in counts if count]


def _heading(averages: Averages, outcome: Outcome) -> Sequence[str]:
    number = averages.num_prompts["traced"]
    clean, corrupted = averages.clean[outcome].mean, averages.corrupted[outcome].mean
    return [
        f"Average indirect effects, {number} prompt{'s' * (number != 1)}",
        _of_runs(UNITS[outcome], clean, corrupted, averages.total_effect[outcome]),
    ]


def _of_runs(unit: Unit, clean: float, corrupted: float, total: Estimate) -> str:
    return (
        f"{unit.name} of the answer: clean {unit.text(clean)}, corrupted {unit.text(corrupted)}, "
        f"total effect {unit.effect(total)} {unit.points}"
    )


def readout_of(trace: PromptTrace, stack: Stack, mediator: str) -> np.ndarray:
    """Find the cells of a prompt's map at which the answer is read off, ``[tokens, layers]`` bool."""
    of_stack = trace.stacks[stack]
    _, layers, tokens = of_stack.restored[mediator].shape
    start, end = of_stack.subject
    return readout_cells(stack, mediator, (tokens, layers), tokens - 1, reads_subject=start < end)


def _ends(averages: Averages, words: str) -> list[str]:
    """Return what marks the ends of intervals, if there are any."""
    return [] if math.isnan(next(iter(averages.total_effect.values())).low) else [words]


def _footnote(averages: Averages, marks: Sequence[str]) -> str:
    num_traced = averages.num_prompts["traced"]
    some = any(
        (counts != num_traced).any() and counts.any()
        for counts in (of_stack.num_prompts[of_stack.num_prompts > 0] for of_stack in averages.stacks.values())
    )
    return "; ".join([*marks, *(["(n): only n prompts have such tokens"] if some else [])])
