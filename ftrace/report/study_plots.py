"""Pictures of studies: bars for rows, or curves for rows over groups of queries or variants, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ftrace.evaluation import Estimate
from ftrace.report.pictures import save_picture
from ftrace.report.style import ACCENT, GREY, INK, PAGE, SMALL, TEXT, in_lines, look, series, shown

Rows = Mapping[str, Estimate]
_OTHERS = "#b8c4c9"


def plot_bars(panels: Mapping[str, Rows], ceilings: Mapping[str, float], metric: str, title: str, file: Path) -> Path:
    """Draw a panel for each variant with a bar for each row, with 95% intervals.

    Args:
        panels: For each panel's title, estimates by row, as shares of 1.
        ceilings: For each panel's title, the highest value that any row can reach.
        metric: Name of the metric that is estimated.
        title: Title of the picture.
        file: Path of the picture.

    Returns:
        The path.
    """
    longest = max(len(rows) for rows in panels.values())
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    with look():
        figure = Figure(figsize=(PAGE, 0.4 + lines * (0.75 + 0.19 * longest)), layout="constrained")
        figure.suptitle("\n".join(in_lines(shown(title), PAGE - 0.4, TEXT, 3)), x=0.01, ha="left")
        for number, (title_of_panel, rows) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(lines, columns, number)
            names = list(rows)[::-1]
            means, errors = _in_percent(rows[name] for name in names)
            colors = [ACCENT if name.startswith("online") else _OTHERS for name in names]
            axes.barh([shown(name) for name in names], means, xerr=errors, color=colors, ecolor=INK, height=0.7,
                      error_kw={"linewidth": 0.8})  # fmt: skip
            ceiling = 100 * ceilings[title_of_panel]
            axes.axvline(ceiling, color=INK, linewidth=1.2)
            axes.annotate(
                f"ceiling {ceiling:.0f}", (ceiling, 1), (-2, 1), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="right", va="bottom", fontsize=SMALL,
            )  # fmt: skip
            axes.set_xlim(0, _top(means, errors[1], [ceiling]))
            axes.set_xlabel(_label(metric, bool(errors.any())))
            axes.set_title(shown(title_of_panel), loc="left", pad=10)
            axes.tick_params(axis="y", length=0)
        return save_picture(figure, file)


def plot_curves(
    panels: Mapping[str, Mapping[str, Rows]],
    ceilings: Mapping[str, Mapping[str, float]],
    axis: str,
    metric: str,
    file: Path,
) -> Path:
    """Draw a panel for each variant with a curve over groups for each row, with 95% intervals.

    Args:
        panels: For each panel's title and each row, estimates by group, as shares of 1.
        ceilings: For each panel's title and each group, the highest value that any row can reach.
        axis: Label of the axis of groups.
        metric: Name of the metric that is estimated.
        file: Path of the picture.

    Returns:
        The path.
    """
    names = list(dict.fromkeys(name for rows in panels.values() for name in rows))
    with look():
        figure = Figure(figsize=(max(PAGE, 3.5 * len(panels)), 3.8), layout="constrained")
        handles: dict[str, Any] = {}
        for number, (title, rows) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(1, len(panels), number)
            groups = list(ceilings[title])
            most = [100 * ceilings[title][group] for group in groups]
            highest: list[float] = []
            has_intervals = False
            for order, (name, by_group) in enumerate(rows.items()):
                at = np.array([groups.index(group) for group in by_group]) + 0.04 * (order - len(rows) / 2)
                means, errors = _in_percent(by_group.values())
                width = 2.0 if name.startswith("online") else 1.0
                handles[name] = axes.errorbar(
                    at, means, yerr=errors, elinewidth=0.8, linewidth=width, **series(names.index(name))
                )
                highest += (means + errors[1]).tolist()
                has_intervals |= bool(errors.any())
            axes.hlines(most, np.arange(len(groups)) - 0.4, np.arange(len(groups)) + 0.4, color=INK, linewidth=1.4)
            for place, ceiling in enumerate(most):
                _above(axes, place, ceiling, f"ceiling {ceiling:.0f}")
            axes.set_xticks(range(len(groups)), ["\n".join(in_lines(shown(group), 0.8, SMALL, 2)) for group in groups])
            axes.set_xlabel(axis)
            axes.set_ylabel(_label(metric, has_intervals))
            axes.set_ylim(0, _top(np.array(highest), np.zeros(len(highest)), most))
            axes.set_title("\n".join(in_lines(shown(title), 3.2, TEXT, 2)), loc="left")
            axes.axhline(0, color=GREY, linewidth=0.6)
            axes.grid(axis="y")
        labels = [shown(name) for name in handles]
        figure.legend(list(handles.values()), labels, loc="outside lower center", ncols=4)
        return save_picture(figure, file)


def _in_percent(estimates: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return means and how far intervals reach below and above them; 0 where an interval is not known."""
    ends = 100 * np.array([[estimate.mean, estimate.low, estimate.high] for estimate in estimates]).T
    return ends[0], np.nan_to_num(np.abs(ends[1:] - ends[0]))


def _top(means: np.ndarray, above: np.ndarray, ceilings: list[float]) -> float:
    return 1.08 * max([*(means + above).tolist(), *ceilings, 1e-9])


def _label(metric: str, has_intervals: bool) -> str:
    return f"{metric}, percent" + ("; bars: 95% intervals" if has_intervals else "")


def _above(axes: Axes, place: float, height: float, text: str) -> None:
    axes.annotate(text, (place, height), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=SMALL)
