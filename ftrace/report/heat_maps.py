"""Heat maps of indirect effects, side by side on one scale of colours.

Red is above 0 and blue below. The scale is symmetric about 0 and nothing is clipped, so that small effects don't look
large. The colour bar shows only the part of the scale that occurs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from ftrace.report.causal_words import drawable, in_order, wrapped

_COLOURS = colormaps["RdBu_r"].with_extremes(bad="#cccccc")
_ROW = 0.2  # inches, as all sizes here
_LETTER = 0.068  # of a label, on average


@dataclass(frozen=True)
class HeatMap:
    """One heat map.

    Args:
        title: Text above the map.
        rows: Labels of the rows, from above.
        values: ``[rows, layers]``, in the unit that is shown.
        ring: Row and layer of a cell to be marked, if any.
    """

    title: str
    rows: Sequence[str]
    values: np.ndarray
    ring: tuple[int, int] | None = None

    @property
    def width(self) -> float:
        """Width in inches."""
        return min(max(0.2 * self.values.shape[1], 2.4), 4.0)

    @property
    def height(self) -> float:
        """Height in inches."""
        return _ROW * len(self.rows)


def draw_heat_maps(
    stacks: Mapping[str, Mapping[str, HeatMap]], heading: Sequence[str], bar: str, footnote: str
) -> Figure:
    """Draw the heat maps of one stack in up to three columns, or those of several stacks in a column each.

    Args:
        stacks: For each stack, its heat maps by mediator; the maps of a stack have the same rows.
        heading: Lines above all maps.
        bar: Label of the colour bar, with the unit.
        footnote: Text below all maps.

    Raises:
        ValueError: If there is no finite number to draw.
    """
    maps = [heat_map for of_stack in stacks.values() for heat_map in of_stack.values()]
    size = largest(heat_map.values for heat_map in maps)
    norm = Normalize(-size, size)
    columns = _columns(stacks)
    widths = [max(heat_map.width for heat_map in column if heat_map) for column in columns]
    heights = [max(heat_map.height for heat_map in line if heat_map) for line in zip(*columns, strict=True)]
    labels = [_LETTER * max(len(row) for heat_map in column if heat_map for row in heat_map.rows) for column in columns]
    across = sum(widths) + (labels[0] if len(stacks) == 1 else sum(labels)) + 0.2 * len(columns) + 1
    down = sum(heights) + 0.55 * len(heights) + 0.2 * len(heading) + 0.4
    figure = Figure(figsize=(max(across, 6.2), max(down, 2.8)), layout="constrained")
    grid = figure.add_gridspec(len(heights), len(columns), width_ratios=widths, height_ratios=heights)
    for column, cells in enumerate(columns):
        lowest = max(row for row, heat_map in enumerate(cells) if heat_map)
        for row, heat_map in enumerate(cells):
            if heat_map:
                axes = figure.add_subplot(grid[row, column])
                draw_map(axes, heat_map, norm)
                axes.set_title(wrapped(heat_map.title, int(widths[column] / _LETTER)), fontsize=9)
                if column == 0 or len(stacks) > 1:
                    axes.set_yticks(range(len(heat_map.rows)), heat_map.rows, parse_math=False)
                else:
                    axes.set_yticks([])
                axes.set_xlabel("layer" if row == lowest else "", fontsize=9)
                if heat_map.height < heights[row]:  # a decoder of few tokens beside its encoder
                    axes.set_box_aspect(heat_map.height / widths[column])
                    axes.set_anchor("N")
    draw_bar(figure, figure.axes, norm, maps, bar)
    set_heading(figure, heading)
    figure.supxlabel(footnote, fontsize=8, color="#555555")
    return figure


def largest(values: Iterable[np.ndarray]) -> float:
    """Return the largest absolute value of a finite number; 1 if all are 0.

    Raises:
        ValueError: If there is no finite number.
    """
    sizes = np.abs(np.concatenate([array.ravel() for array in values]))
    sizes = sizes[np.isfinite(sizes)]
    if not len(sizes):
        raise ValueError("expected effects that are numbers, found none: choose an outcome that was computed")
    return float(sizes.max()) or 1.0


def set_heading(figure: Figure, lines: Sequence[str]) -> None:
    """Write lines above a figure, broken at its width; no character in them is taken for mathematics."""
    width = int(figure.get_figwidth() / 0.082)
    figure.suptitle("\n".join(wrapped(drawable(line), width) for line in lines), fontsize=10, parse_math=False)


def _columns(stacks: Mapping[str, Mapping[str, HeatMap]]) -> list[list[HeatMap | None]]:
    """Arrange the maps in columns; None leaves a gap."""
    if len(stacks) > 1:
        mediators = in_order(dict.fromkeys(mediator for maps in stacks.values() for mediator in maps))
        return [[maps.get(mediator) for mediator in mediators] for maps in stacks.values()]
    (maps,) = stacks.values()
    across = 2 if len(maps) == 4 else min(3, len(maps))
    down = math.ceil(len(maps) / across)
    cells = [*maps.values(), *[None] * (across * down - len(maps))]
    return [cells[column::across] for column in range(across)]


def draw_map(axes: Axes, heat_map: HeatMap, norm: Normalize) -> None:
    """Draw the cells of a heat map, without its title and labels of rows."""
    rows, layers = heat_map.values.shape
    axes.pcolormesh(
        np.arange(layers + 1) - 0.5, np.arange(rows + 1) - 0.5, np.ma.masked_invalid(heat_map.values), norm=norm,
        cmap=_COLOURS, edgecolors="white" if heat_map.width / layers > 0.15 else "face", linewidth=0.3,
    )  # fmt: skip
    axes.invert_yaxis()
    if heat_map.ring:
        row, layer = heat_map.ring
        edge = "white" if abs(2 * float(norm(heat_map.values[row, layer])) - 1) > 0.6 else "black"
        axes.plot(layer, row, "o", markersize=6, markerfacecolor="none", markeredgecolor=edge, markeredgewidth=1.1)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(labelsize=8, length=2)
    axes.spines[:].set_visible(False)


def draw_bar(
    figure: Figure | SubFigure, beside: Sequence[Axes], norm: Normalize, maps: Sequence[HeatMap], label: str
) -> None:
    """Draw the colour bar of some heat maps beside them, with the part of the scale that occurs."""
    values = np.concatenate([heat_map.values.ravel() for heat_map in maps])
    values = values[np.isfinite(values)]
    width, height_of_figure = figure.bbox.width / figure.dpi, figure.bbox.height / figure.dpi
    down = height_of_figure - 1.2
    height = min(down, 4.0)
    bar = figure.colorbar(
        ScalarMappable(norm, _COLOURS), ax=list(beside), fraction=0.2 / width, aspect=height / 0.15,
        pad=0.02, shrink=height / down, panchor=False,
    )  # fmt: skip
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if low < high:
        bar.ax.set_ylim(low, high)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
