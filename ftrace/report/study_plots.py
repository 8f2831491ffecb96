"""Pictures of studies: bars for rows, or curves for rows over groups of queries or variants, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from ftrace.evaluation import Estimate
from ftrace.report.pictures import save_picture

Rows = Mapping[str, Estimate]


def plot_bars(panels: Mapping[str, Rows], metric: str, title: str, file: Path) -> Path:
    """Draw a panel for each variant with a bar for each row, with 95% intervals.

    Args:
        panels: For each panel's title, estimates by row, as shares of 1.
        metric: Name of the metric that is estimated.
        title: Title of the picture.
        file: Path of the picture.

    Returns:
        The path.
    """
    longest = max(len(rows) for rows in panels.values())
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5.6 * columns, lines * (1.0 + 0.26 * longest)), layout="constrained")
    figure.suptitle(title)
    for number, (title_of_panel, rows) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(lines, columns, number)
        names = list(rows)[::-1]
        means = np.array([100 * rows[name].mean for name in names])
        ends = np.array([[100 * rows[name].low, 100 * rows[name].high] for name in names]).T
        errors = np.nan_to_num(np.abs(ends - means))
        colors = ["#1f6f8b" if name.startswith("online") else "#b8c4c9" for name in names]
        axes.barh(names, means, xerr=errors, color=colors, ecolor="#444444", height=0.7)
        axes.set_xlim(0, 103)
        axes.set_xlabel(f"{metric}, percent")
        axes.set_title(title_of_panel, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return save_picture(figure, file, dpi=150)


def plot_curves(panels: Mapping[str, Mapping[str, Rows]], axis: str, metric: str, file: Path) -> Path:
    """Draw a panel for each variant with a curve over groups for each row, with 95% intervals.

    Args:
        panels: For each panel's title and each row, estimates by group, as shares of 1.
        axis: Label of the axis of groups.
        metric: Name of the metric that is estimated.
        file: Path of the picture.

    Returns:
        The path.
    """
    figure = Figure(figsize=(6.4 * len(panels), 5.2), layout="constrained")
    for number, (title, rows) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), number)
        groups = list(dict.fromkeys(group for by_group in rows.values() for group in by_group))
        colors = colormaps["tab20"](np.linspace(0, 1, 20))[[*range(0, 20, 2), *range(1, 20, 2)]]
        for order, (name, by_group) in enumerate(rows.items()):
            at = np.array([groups.index(group) for group in by_group]) + 0.04 * (order - len(rows) / 2)
            means = np.array([100 * estimate.mean for estimate in by_group.values()])
            ends = np.array([[100 * estimate.low, 100 * estimate.high] for estimate in by_group.values()]).T
            style = "-" if name.startswith("online") else "--"
            errors = np.nan_to_num(np.abs(ends - means))
            axes.errorbar(
                at, means, yerr=errors, label=name, linestyle=style, color=colors[order % 20], marker="o", markersize=4,
                capsize=2, linewidth=2.2 if name.startswith("online") else 1.2,
            )  # fmt: skip
        axes.set_xticks(range(len(groups)), groups, fontsize=8)
        axes.set_xlabel(axis)
        axes.set_ylabel(f"{metric}, percent")
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside lower center", ncols=4
    )
    return save_picture(figure, file, dpi=150)
