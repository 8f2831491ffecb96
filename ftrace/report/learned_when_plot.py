"""Picture of the precision by the step at which queries were learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ftrace.evaluation.retrieval import LearnedBin
from ftrace.evaluation.retrieval.learned_bins import of_bin, when
from ftrace.report.pictures import save_picture
from ftrace.report.style import GREY, INK, PAGE, SMALL, label_ends, look, series, shown

_HALF = 0.36  # of the room that a bin takes


def plot_learned_when(bins: Sequence[LearnedBin], file: Path) -> Path:
    """Draw P@10 of each row of scores by bin, with 95% intervals, and the most that is possible in each bin.

    Args:
        bins: Bins of queries from early to late.
        file: Path of the picture; its ending determines the format.

    Returns:
        The path.

    Raises:
        ValueError: If there are no bins.
    """
    if not bins:
        raise ValueError("expected at least one bin of queries, found none")
    names = list(bins[0].methods)
    states = np.array([learned_bin.state for learned_bin in bins])
    # What was known from the first, and what never was, is not learned at any step, so it stands apart.
    positions = np.arange(len(bins)) + 0.25 * (states == "never") - 0.25 * (states == "known")
    shifts = np.linspace(-0.6, 0.6, len(names)) * _HALF if len(names) > 1 else np.zeros(1)
    ends: list[tuple[str, float, dict[str, Any]]] = []
    has_intervals, top = False, 0.0
    with look():
        figure = Figure(figsize=(PAGE, 3.4), layout="constrained")
        axes = figure.subplots()
        for number, (name, shift) in enumerate(zip(names, shifts, strict=True)):
            estimates = [learned_bin.methods[name].precision for learned_bin in bins]
            means = 100 * np.array([estimate.mean for estimate in estimates])
            sides = [[estimate.mean - estimate.low, estimate.high - estimate.mean] for estimate in estimates]
            errors = 100 * np.clip(np.array(sides).T, 0, None)
            style = series(number)
            axes.errorbar(
                positions + shift, means, yerr=np.nan_to_num(errors), fmt="none", ecolor=style["color"], elinewidth=0.8
            )
            for state in np.unique(states):
                axes.plot(positions[states == state] + shift, means[states == state], **style)
            ends.append((shown(name), float(means[-1]), style))
            has_intervals |= bool(np.isfinite(errors).any())
            top = max(top, float(np.nanmax(means + np.nan_to_num(errors[1]))))
        ceilings = 100 * np.array([learned_bin.ceiling for learned_bin in bins])
        axes.hlines(ceilings, positions - 1.25 * _HALF, positions + 1.25 * _HALF, color=INK, linewidth=1.4, zorder=1)
        for position, ceiling in zip(positions, ceilings, strict=True):
            axes.annotate(
                f"ceiling {ceiling:.0f}", (position, ceiling), (0, 2), textcoords="offset points", ha="center",
                va="bottom", fontsize=SMALL,
            )  # fmt: skip
        axes.set_xticks(positions, [f"{when(one)}\n{of_bin(one)}" for one in bins])
        axes.set_xlim(positions[0] - 1.5 * _HALF, positions[-1] + 1.5 * _HALF)
        axes.set_xlabel("optimizer step at which the query was first right")
        axes.set_ylabel("P@10, percent" + ("; bars: 95% intervals" if has_intervals else ""))
        axes.set_ylim(0, 1.08 * max(top, float(ceilings.max())) or 1)
        axes.grid(axis="y")
        axes.tick_params(axis="x", length=0)
        axes.axhline(0, color=GREY, linewidth=0.6)
        figure.draw_without_rendering()  # labels are moved apart by the room that the layout leaves
        label_ends(axes, ends)
        return save_picture(figure, file)
