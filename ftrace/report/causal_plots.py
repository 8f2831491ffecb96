"""Pictures of causal tracing: heat maps of single prompts and of averages, and lines with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ftrace.causal.averages import Averages, EffectGrid, StackAverages
from ftrace.causal.prompt_trace import OUTCOMES, Outcome, PromptTrace
from ftrace.evaluation import Estimate
from ftrace.report.causal_words import UNITS, Unit, font_families, in_order, mediator_title, token_label
from ftrace.report.heat_maps import HeatMap, draw_heat_maps, largest, set_heading
from ftrace.report.pictures import save_png_and_pdf

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")  # Okabe and Ito
_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


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
    with rc_context({"font.family": list(font_families())}):
        figure = draw_heat_maps(stacks, heading, f"indirect effect\n({unit.points})", "* a token of the subject")
        return save_png_and_pdf(figure, file)


def plot_average(averages: Averages, file: Path, outcome: Outcome = "probability") -> tuple[Path, Path]:
    """Draw average indirect effects: a heat map for each mediator, groups of positions down, layers across.

    A ring marks each mediator's peak; see :meth:`~ftrace.causal.averages.StackAverages.peak`.

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
            stacks[stack][mediator] = HeatMap(title, rows, effects, ring)
    with rc_context({"font.family": list(font_families())}):
        figure = draw_heat_maps(
            stacks,
            _heading(averages, outcome),
            f"average indirect effect\n({unit.points})",
            _footnote(averages, "ring: the peak"),
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
    with rc_context({"font.family": list(font_families())}):
        figure = Figure(figsize=(max(3.2 * across, 6.4), 2.1 * down + 1.4), layout="constrained")
        grid = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.remove()
        handles = {}
        for number, (of_stack, row, title) in enumerate(panels):
            axes = grid[number]
            for mediator in in_order(of_stack.effects):
                effects, colour_number = of_stack.effects[mediator][outcome], mediators.index(mediator)
                handles[mediator] = _draw_line(axes, effects, row, unit, colour_number)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("layer" if number + across >= len(panels) else "", fontsize=9)
        figure.supylabel(f"average indirect effect ({unit.points})", fontsize=9)
        set_heading(figure, _heading(averages, outcome))
        figure.legend(
            [handles[mediator] for mediator in mediators], [mediator_title(mediator) for mediator in mediators],
            loc="outside lower center", ncols=min(len(mediators), max(across, 2)), fontsize=8, frameon=False,
            title=_footnote(averages, "bands: 95% intervals"), title_fontsize=8,
        )  # fmt: skip
        return save_png_and_pdf(figure, file)


def _draw_line(axes: Axes, effects: EffectGrid, row: int, unit: Unit, order: int) -> Any:
    """Draw one group's effects over layers, with a band for the interval, and return the line."""
    mean, low, high = (unit.factor * values[row] for values in (effects.mean, effects.low, effects.high))
    layers = np.arange(len(mean))
    colour = _COLOURS[order % len(_COLOURS)]
    axes.axhline(0, color="#888888", linewidth=0.6, zorder=0)
    axes.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
    (line,) = axes.plot(
        layers, mean, color=colour, linestyle=_LINES[order % len(_LINES)], linewidth=1.5, markersize=2.5,
        marker="o" if len(layers) < 16 else None,
    )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
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


def _footnote(averages: Averages, marks: str) -> str:
    num_traced = averages.num_prompts["traced"]
    some = any((of_stack.num_prompts != num_traced).any() for of_stack in averages.stacks.values())
    return marks + ("; in brackets: how many prompts have such tokens" if some else "")
