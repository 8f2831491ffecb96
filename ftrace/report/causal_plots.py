"""Pictures of causal tracing: heat maps of one prompt and of averages, and lines with intervals."""

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

    Tokens of the subject have a star. An encoder-decoder's stacks stand side by side.

    Args:
        trace: The prompt's.
        outcome: On what the effects are.
        file: Where the picture goes; endings ``.png`` and ``.pdf`` are added.

    Returns:
        The PNG and the PDF.

    Raises:
        ValueError: If the prompt was not traced, or the outcome is not known of it.
    """
    if not trace.stacks:
        why = f": {trace.reason}" if trace.reason else ""
        raise ValueError(f"expected a prompt that was traced, found {trace.name!r} with status {trace.status!r}{why}")
    unit = UNITS[outcome]
    stacks: dict[str, dict[str, HeatMap]] = {}
    for stack, own in trace.stacks.items():
        start, end = own.subject
        rows = [token_label(token, of_subject=start <= place < end) for place, token in enumerate(own.tokens)]
        stacks[stack] = {
            one: HeatMap(
                _titled(one, stack, len(trace.stacks)),
                rows,
                unit.factor * trace.indirect_effect(stack, one, outcome).T,
            )
            for one in in_order(own.restored)
        }
    place = OUTCOMES.index(outcome)
    total = Estimate(trace.total_effect(outcome), math.nan, math.nan)
    answer = trace.answers[0].strip() if trace.answers else "?"
    heading = [f"{trace.prompt.strip()} → {answer}", _of_runs(unit, trace.clean[place], trace.corrupted[place], total)]
    with rc_context({"font.family": list(font_families())}):
        figure = draw_heat_maps(stacks, heading, f"indirect effect\n({unit.points})", "* a token of the subject")
        return save_png_and_pdf(figure, file)


def plot_average(averages: Averages, file: Path, outcome: Outcome = "probability") -> tuple[Path, Path]:
    """Draw average indirect effects: a heat map for each mediator, groups of places down, layers across.

    A ring marks each mediator's peak; see :meth:`~ftrace.causal.averages.StackAverages.peak`.

    Args:
        averages: Over prompts.
        file: Where the picture goes; endings ``.png`` and ``.pdf`` are added.
        outcome: On what the effects are.

    Returns:
        The PNG and the PDF.

    Raises:
        ValueError: If the outcome is not known of the prompts.
    """
    unit = UNITS[outcome]
    stacks: dict[str, dict[str, HeatMap]] = {}
    for stack, own in averages.stacks.items():
        shown = np.flatnonzero(own.num_prompts).tolist()
        rows = _group_labels(averages, own)
        stacks[stack] = {}
        for one in in_order(own.effects):
            title, ring = _titled(one, stack, len(averages.stacks)), None
            peak = own.peak(one, outcome)
            if peak is not None:
                title += f"\npeak {unit.effect(peak.effect)} in layer {peak.layer}"
                ring = (shown.index(own.groups.index(peak.group)), peak.layer)
            stacks[stack][one] = HeatMap(title, rows, unit.factor * own.effects[one][outcome].mean[shown], ring)
    with rc_context({"font.family": list(font_families())}):
        figure = draw_heat_maps(
            stacks,
            _heading(averages, outcome),
            f"average indirect effect\n({unit.points})",
            _footnote(averages, "ring: the peak"),
        )
        return save_png_and_pdf(figure, file)


def plot_lines(averages: Averages, file: Path, outcome: Outcome = "probability") -> tuple[Path, Path]:
    """Draw average indirect effects as lines over layers, a panel for each group of places, with 95% intervals.

    Args:
        averages: Over prompts.
        file: Where the picture goes; endings ``.png`` and ``.pdf`` are added.
        outcome: On what the effects are.

    Returns:
        The PNG and the PDF.

    Raises:
        ValueError: If the outcome is not known of the prompts.
    """
    unit = UNITS[outcome]
    largest(one[outcome].mean for own in averages.stacks.values() for one in own.effects.values())
    mediators = in_order(dict.fromkeys(one for own in averages.stacks.values() for one in own.effects))
    panels = []
    for stack, own in averages.stacks.items():
        prefix = f"{stack}: " if len(averages.stacks) > 1 else ""
        shown = np.flatnonzero(own.num_prompts).tolist()
        panels += [(own, row, prefix + name) for row, name in zip(shown, _group_labels(averages, own), strict=True)]
    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    with rc_context({"font.family": list(font_families())}):
        figure = Figure(figsize=(max(3.2 * across, 6.4), 2.1 * down + 1.4), layout="constrained")
        grid = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.remove()
        handles = {}
        for place, (own, row, title) in enumerate(panels):
            axes = grid[place]
            for one in in_order(own.effects):
                handles[one] = _draw_line(axes, own.effects[one][outcome], row, unit, mediators.index(one))
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("layer" if place + across >= len(panels) else "", fontsize=9)
        figure.supylabel(f"average indirect effect ({unit.points})", fontsize=9)
        set_heading(figure, _heading(averages, outcome))
        figure.legend(
            [handles[one] for one in mediators], [mediator_title(one) for one in mediators],
            loc="outside lower center", ncols=min(len(mediators), max(across, 2)), fontsize=8, frameon=False,
            title=_footnote(averages, "bands: 95% intervals"), title_fontsize=8,
        )  # fmt: skip
        return save_png_and_pdf(figure, file)


def _draw_line(axes: Axes, effects: EffectGrid, row: int, unit: Unit, order: int) -> Any:
    """Draw one group's effects over layers, with their band; returns the line."""
    mean, low, high = (unit.factor * one[row] for one in (effects.mean, effects.low, effects.high))
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


def _group_labels(averages: Averages, own: StackAverages) -> list[str]:
    """Groups that some prompt has, with how many have them where not all do."""
    everyone = averages.num_prompts["traced"]
    counts = zip(own.groups, own.num_prompts.tolist(), strict=True)
    return [name if count == everyone else f"{name} ({count})" for name, count in counts if count]


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
    everyone = averages.num_prompts["traced"]
    some = any((own.num_prompts != everyone).any() for own in averages.stacks.values())
    return marks + ("; in brackets: how many prompts have such tokens" if some else "")
