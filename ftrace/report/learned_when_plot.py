"""Precision by the step at which queries were learned, as a picture."""

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
        bins: From early to late.
        file: Where the picture goes; its ending says in which format.

    Returns:
        The file.

    Raises:
        ValueError: If there are no bins.
    """
    if not bins:
        raise ValueError("expected at least one bin of queries, found none")
    names = list(bins[0].methods)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(bins))
    shifts = np.linspace(-0.12, 0.12, len(names)) if len(names) > 1 else np.zeros(1)  # so that intervals don't overlap
    for index, (name, shift) in enumerate(zip(names, shifts, strict=True)):
        estimates = [one.methods[name].precision for one in bins]
        means = 100 * np.array([one.mean for one in estimates])
        ends = np.array([[one.mean - one.low, one.high - one.mean] for one in estimates]).T
        errors = 100 * np.nan_to_num(np.clip(ends, 0, None))
        colour = colormaps["tab10"](index % 10)
        line = ("-", "--", ":")[index // 10 % 3]
        axes.errorbar(
            places + shift, means, yerr=errors, fmt="o", linestyle=line, color=colour, capsize=3, markersize=4,
            linewidth=1.4, label=name,
        )  # fmt: skip
    axes.set_xticks(places, [f"{when(one)}\n{one.num_queries} queries" for one in bins])
    axes.set_xlabel("optimizer step at which the query was first right")
    axes.set_ylabel("P@10 (percent), with 95% intervals")
    axes.set_ylim(0, 103)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=2)
    return save_picture(figure, file)
