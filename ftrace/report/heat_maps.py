"""Heat maps of indirect effects, side by side, on one scale of colours or on one for each mediator.

Red is above 0 and blue below. A scale is symmetric about 0 and made for the largest effect, so that small ones don't
look large. Cells at which the answer is read off are hatched and don't count: they would be the largest in any model.
Those that exceed the scale bear their number. The colour bar shows only the part of the scale that occurs.
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
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from ftrace.causal.readout import IN_WORDS
from ftrace.report.causal_words import in_order
from ftrace.report.style import GREY, INK, SMALL, TEXT, TINY, in_lines, shown, text_width

_COLOURS = colormaps["RdBu_r"].with_extremes(bad="#cccccc")
_ROW = 0.18  # inches, as all sizes here


@dataclass(frozen=True)
class HeatMap:
    """One heat map.

    Args:
        title: Text above the map.
        rows: Labels of the rows, from above.
        values: ``[rows, layers]``, in the unit that is shown.
        ring: Row and layer of a cell to be marked, if any.
        readout: The cells at which the answer is read off, ``[rows, layers]`` bool; None if there are none. They are
            hatched, and the scale of colours is not made for them.
    """

    title: str
    rows: Sequence[str]
    values: np.ndarray
    ring: tuple[int, int] | None = None
    readout: np.ndarray | None = None

    @property
    def width(self) -> float:
        """Width in inches."""
        return min(max(0.16 * self.values.shape[1], 2.1), 3.6)

    @property
    def height(self) -> float:
        """Height in inches."""
        return _ROW * len(self.rows)

    @property
    def hatched(self) -> np.ndarray:
        """The cells that the scale of colours is not made for, ``[rows, layers]`` bool."""
        return np.zeros(self.values.shape, bool) if self.readout is None else self.readout


def draw_heat_maps(
    stacks: Mapping[str, Mapping[str, HeatMap]],
    heading: Sequence[str],
    bar: str,
    footnote: str,
    *,
    by_mediator: bool = False,
) -> Figure:
    """Draw the heat maps of one stack in up to three columns, or those of several stacks in a column each.

    Args:
        stacks: For each stack, its heat maps by mediator; the maps of a stack have the same rows.
        heading: Lines above all maps.
        bar: Label of the colour bar, with the unit.
        footnote: Text below all maps.
        by_mediator: Whether each mediator has a scale of its own, with its bar: see :func:`scales`.

    Raises:
        ValueError: If there is no finite number to draw.
    """
    maps = [heat_map for of_stack in stacks.values() for heat_map in of_stack.values()]
    norms = (
        scales(stacks) if by_mediator else dict.fromkeys((name for one in stacks.values() for name in one), scale(maps))
    )
    names = {id(heat_map): name for of_stack in stacks.values() for name, heat_map in of_stack.items()}
    drawn: dict[str, list[Axes]] = {}
    columns = _columns(stacks)
    widths = [max(heat_map.width for heat_map in column if heat_map) for column in columns]
    heights = [max(heat_map.height for heat_map in line if heat_map) for line in zip(*columns, strict=True)]
    labels = [max(text_width(row, SMALL) for one in column if one for row in one.rows) for column in columns]
    bars = len(columns) if by_mediator and len(stacks) == 1 else 1
    across = sum(widths) + (labels[0] if len(stacks) == 1 else sum(labels)) + 0.2 * len(columns) + 0.8 * bars
    down = sum(heights) + 0.55 * len(heights) + 0.18 * len(heading) + 0.4
    figure = Figure(figsize=(max(across, 6.2), max(down, 2.8)), layout="constrained")
    grid = figure.add_gridspec(len(heights), len(columns), width_ratios=widths, height_ratios=heights)
    for column, cells in enumerate(columns):
        lowest = max(row for row, heat_map in enumerate(cells) if heat_map)
        for row, heat_map in enumerate(cells):
            if heat_map:
                axes = figure.add_subplot(grid[row, column])
                draw_map(axes, heat_map, norms[names[id(heat_map)]])
                drawn.setdefault(names[id(heat_map)], []).append(axes)
                lines = [in_lines(line, widths[column], TEXT, 2) for line in heat_map.title.split("\n")]
                axes.set_title("\n".join("\n".join(line) for line in lines), loc="left")
                if column == 0 or len(stacks) > 1:
                    axes.set_yticks(range(len(heat_map.rows)), heat_map.rows, parse_math=False)
                else:
                    axes.set_yticks([])
                axes.set_xlabel("layer" if row == lowest else "")
                if heat_map.height < heights[row]:  # a decoder of few tokens beside its encoder
                    axes.set_box_aspect(heat_map.height / widths[column])
                    axes.set_anchor("N")
    if by_mediator:
        for name, beside in drawn.items():
            of_mediator = [of_stack[name] for of_stack in stacks.values() if name in of_stack]
            draw_bar(figure, beside, norms[name], of_mediator, None, max(heat_map.height for heat_map in of_mediator))
        note = _about_readout(maps).replace("\n", " ")
        footnote = "; ".join(filter(None, [f"bars: {bar}, each mediator's own scale of colors", footnote, note]))
    else:
        draw_bar(figure, figure.axes, scale(maps), maps, bar)
    set_heading(figure, heading)
    if footnote:
        footnote = "\n".join(in_lines(footnote, figure.get_figwidth() - 0.2, SMALL, 4))
        figure.supxlabel(footnote, fontsize=SMALL, color=GREY, x=0.01, ha="left")
    return figure


def scale(maps: Sequence[HeatMap]) -> Normalize:
    """Make the scale of colours for some heat maps, symmetric about 0, that holds every cell that is not hatched.

    Raises:
        ValueError: If there is no finite number to draw.
    """
    largest(heat_map.values for heat_map in maps)
    counted = [np.where(heat_map.hatched, np.nan, heat_map.values) for heat_map in maps]
    if not any(np.isfinite(values).any() for values in counted):  # nothing is left but where the answer is read off
        counted = [heat_map.values for heat_map in maps]
    size = largest(counted)
    return Normalize(-size, size)


def scales(stacks: Mapping[str, Mapping[str, HeatMap]]) -> dict[str, Normalize]:
    """Make a scale of colours for each mediator, over all stacks, as :func:`scale` makes one for all.

    Restoring ten layers' attention at the last token brings back most of what the model has read, and would leave every
    earlier site pale. No scale ends below a tenth of the largest, so that what is nothing isn't coloured.

    Raises:
        ValueError: If there is no finite number to draw.
    """
    by_mediator: dict[str, list[HeatMap]] = {}
    for of_stack in stacks.values():
        for name, heat_map in of_stack.items():
            by_mediator.setdefault(name, []).append(heat_map)
    least = float(scale([heat_map for maps in by_mediator.values() for heat_map in maps]).vmax or 0) / 10
    sizes = {name: max(_size(maps), least) for name, maps in by_mediator.items()}
    return {name: Normalize(-size, size) for name, size in sizes.items()}


def _size(maps: Sequence[HeatMap]) -> float:
    """Return the largest absolute value of cells that are not hatched, 0 if there are none."""
    values = np.abs(np.concatenate([heat_map.values[~heat_map.hatched] for heat_map in maps]))
    return float(values.max(initial=0.0, where=np.isfinite(values)))


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
    """Write lines above a figure, broken at its width."""
    width = figure.get_figwidth() - 0.2
    broken = [line for given in lines for line in in_lines(shown(given), width, TEXT, 3)]
    figure.suptitle("\n".join(broken), x=0.01, ha="left", parse_math=False)


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


def draw_map(axes: Axes, heat_map: HeatMap, norm: Normalize, width: float | None = None) -> None:
    """Draw the cells of a heat map, without its title and labels of rows.

    Args:
        axes: Where to draw it.
        heat_map: What to draw.
        norm: The scale of colours.
        width: About how wide the axes are, in inches; default: the width that the map asks for.
    """
    rows, layers = heat_map.values.shape
    cell = (heat_map.width if width is None else width) / layers
    axes.pcolormesh(
        np.arange(layers + 1) - 0.5, np.arange(rows + 1) - 0.5, np.ma.masked_invalid(heat_map.values), norm=norm,
        cmap=_COLOURS, edgecolors="white" if cell > 0.12 else "face", linewidth=0.3,
    )  # fmt: skip
    axes.invert_yaxis()
    for row, layer in np.argwhere(heat_map.hatched & np.isfinite(heat_map.values)).tolist():
        _mark_readout(axes, heat_map, norm, (row, layer), cell)
    if heat_map.ring:
        row, layer = heat_map.ring
        halo = [withStroke(linewidth=2.4, foreground="white")]  # so that it is seen on every colour
        axes.plot(
            layer, row, "o", markersize=6, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.1,
            path_effects=halo,
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.spines[:].set_visible(False)


def _mark_readout(axes: Axes, heat_map: HeatMap, norm: Normalize, place: tuple[int, int], width: float) -> None:
    """Hatch a cell, and write its number if it exceeds the scale, or set a mark where there is no room for it."""
    row, layer = place
    value = float(heat_map.values[row, layer])
    colour = _on(norm, value)
    corner = (layer - 0.5, row - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="/////", edgecolor=colour, linewidth=0, alpha=0.6))
    if abs(value) <= float(norm.vmax or 0):
        return
    number = f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
    if text_width(number, TINY) + 0.08 < width:
        box = {"facecolor": _COLOURS(norm(value)), "edgecolor": "none", "pad": 1.0}
        axes.text(layer, row, number, fontsize=TINY, color=colour, ha="center", va="center", bbox=box)
    else:
        axes.plot(
            layer,
            row,
            "^" if value > 0 else "v",
            markersize=min(3.0, 0.6 * 72 * width),
            color=colour,
            markeredgewidth=0,
        )


def _on(norm: Normalize, value: float) -> str:
    """Return the colour of marks that are seen on a cell of a value."""
    return "white" if abs(2 * float(norm(value)) - 1) > 0.6 else INK


def draw_bar(
    figure: Figure | SubFigure,
    beside: Sequence[Axes],
    norm: Normalize,
    maps: Sequence[HeatMap],
    label: str | None,
    height_of_maps: float | None = None,
) -> None:
    """Draw the colour bar of some heat maps beside them, with the part of the scale that occurs.

    Args:
        figure: What the maps are in.
        beside: Their axes.
        norm: Their scale.
        maps: The maps.
        label: What the numbers are; None: no label.
        height_of_maps: In inches; default: most of the figure's.
    """
    size = float(norm.vmax or 0)
    values = np.concatenate([heat_map.values.ravel() for heat_map in maps])
    values = values[np.isfinite(values)]
    over, under = bool((values > size).any()), bool((values < -size).any())
    width, height_of_figure = figure.bbox.width / figure.dpi, figure.bbox.height / figure.dpi
    down = height_of_figure - 1.2 if height_of_maps is None else height_of_maps
    width = width if height_of_maps is None else len(beside) * max(heat_map.width for heat_map in maps)
    height = min(down, 3.0)
    bar = figure.colorbar(
        ScalarMappable(norm, _COLOURS), ax=list(beside), fraction=0.2 / width, aspect=height / 0.12,
        pad=0.02, shrink=height / down, panchor=False,
        extend="both" if over and under else "max" if over else "min" if under else "neither",
    )  # fmt: skip
    low, high = max(min(float(values.min()), 0.0), -size), min(max(float(values.max()), 0.0), size)
    if low < high:
        bar.ax.set_ylim(low, high)
    if label is not None:
        bar.set_label("\n".join(filter(None, [label, _about_readout(maps)])), fontsize=SMALL)
    bar.outline.set_visible(False)


def _about_readout(maps: Sequence[HeatMap]) -> str:
    """Say what is hatched, and how large it is; nothing if there is none."""
    readout = np.concatenate([heat_map.values[heat_map.hatched] for heat_map in maps])
    readout = readout[np.isfinite(readout)]
    if not len(readout):
        return ""
    most = f"{readout[np.abs(readout).argmax()]:.3g}".replace("-", "\N{MINUS SIGN}")
    return f"hatched: {IN_WORDS},\nleft out of the scale; largest {most}"
