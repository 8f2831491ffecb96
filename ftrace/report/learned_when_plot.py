"""Picture of the precision by the step at which queries were learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from ftrace.evaluation.retrieval import LearnedBin
from ftrace.evaluation.retrieval.learned_bins import when
from ftrace.report.pictures import save_picture


def plot_learned_when(bins: Sequence[LearnedBin], file: Path) -> Path:
    """Draw P@10 of each row of scores by bin, with 95% intervals.

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
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(bins))
    shifts = np.linspace(-0.12, 0.12, len(names)) if len(names) > 1 else np.zeros(1)  # so that intervals don't overlap
    for index, (name, shift) in enumerate(zip(names, shifts, strict=True)):
        estimates = [learned_bin.methods[name].precision for learned_bin in bins]
        means = 100 * np.array([estimate.mean for estimate in estimates])
        ends = np.array([[estimate.mean - estimate.low, estimate.high - estimate.mean] for estimate in estimates]).T
        errors = 100 * np.nan_to_num(np.clip(ends, 0, None))
        colour = colormaps["tab10"](index % 10)
        line = ("-", "--", ":")[index // 10 % 3]
        axes.errorbar(
            positions + shift, means, yerr=errors, fmt="o", linestyle=line, color=colour, capsize=3, markersize=4,
            linewidth=1.4, label=name,
        )  # fmt: skip
    labels = [f"{when(learned_bin)}\n{learned_bin.num_queries} queries" for learned_bin in bins]
    axes.set_xticks(positions, labels)
    axes.set_xlabel("optimizer step at which the query was first right")
    axes.set_ylabel("P@10 (percent), with 95% intervals")
    axes.set_ylim(0, 103)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=2)
    return save_picture(figure, file)
