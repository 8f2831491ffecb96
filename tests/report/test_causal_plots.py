"""Pictures and tables of causal tracing: every number as it is, on one scale, and every token readable."""

from __future__ import annotations

import csv
import dataclasses
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from rich.console import Console

from ftrace.causal import Averages, average_effects
from ftrace.causal.prompt_trace import OUTCOMES, PromptTrace
from ftrace.report import (
    causal_plots,
    plot_average,
    plot_lines,
    plot_prompt,
    render_averages,
    write_averages_csv,
    write_effects_csv,
)
from ftrace.report.causal_words import UNITS, drawable
from ftrace.shown_text import csv_cell
from helpers.drawn import drawn as drawn_by
from helpers.drawn import texts
from helpers.made_traces import left_out, made_trace, made_traces

SEVEN = ("hidden", "attention_severed", "mlp_severed", "cross_attention_severed", "mlp", "attention", "cross_attention")


def averages(*, encoder: bool = False) -> Averages:
    return average_effects([*made_traces(encoder=encoder), left_out()], resamples=100)


def drawn(monkeypatch: pytest.MonkeyPatch, plot: Callable[..., Any], *args: Any) -> Figure:
    return drawn_by(monkeypatch, causal_plots, plot, *args)


def meshes(figure: Figure) -> list[QuadMesh]:
    return [
        one for axes in figure.axes for one in axes.collections if isinstance(one, QuadMesh) and axes.get_title("left")
    ]


def test_each_picture_is_a_png_and_a_pdf(tmp_path: Path) -> None:
    made = averages()
    files = [
        *plot_prompt(made_trace(), "probability", tmp_path / "new" / "prompt.7"),
        *plot_average(made, tmp_path / "new" / "average.png"),
        *plot_lines(made, tmp_path / "new" / "lines.pdf", "log_probability"),
    ]
    names = [f"{name}.{ending}" for name in ("prompt.7", "average", "lines") for ending in ("png", "pdf")]
    assert [file.name for file in files] == names
    assert {file.name for file in (tmp_path / "new").iterdir()} == set(names)
    for file in files:
        assert file.read_bytes()[:4] in (b"\x89PNG", b"%PDF")
        assert file.stat().st_size > 8_000


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("decoder_tokens", [(), ("<pad>", "<mask>")])
def test_maps_of_a_prompt_share_a_scale_and_show_every_effect(
    outcome: Any, decoder_tokens: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = made_trace(mediators=SEVEN, decoder_tokens=decoder_tokens)
    found = meshes(drawn(monkeypatch, plot_prompt, trace, outcome, Path("unused")))
    effects = {
        f"{stack}/{one}": UNITS[outcome].factor * trace.indirect_effect(stack, one, outcome).T
        for stack, own in trace.stacks.items()
        for one in own.restored
    }
    assert len(found) == len(effects)
    counted = [
        np.abs(values)[~causal_plots.readout_of(trace, *name.split("/"))].max(initial=0)  # type: ignore[arg-type]
        for name, values in effects.items()
    ]
    assert {(one.norm.vmin, one.norm.vmax, one.norm.clip) for one in found} == {(-max(counted), max(counted), False)}
    shown = sorted(np.asarray(one.get_array()).tolist() for one in found)
    assert shown == sorted(values.tolist() for values in effects.values())  # nothing is left out


def test_the_bar_shows_what_occurs(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = made_trace(mediators=["hidden", "mlp"])
    figure = drawn(monkeypatch, plot_prompt, trace, "probability", Path("unused"))
    hidden, mlp = (100 * trace.indirect_effect("decoder", one) for one in ("hidden", "mlp"))
    (bar,) = [axes for axes in figure.axes if "indirect effect" in axes.get_ylabel()]
    last = hidden[np.abs(hidden[:, -1]).argmax(), -1]
    assert bar.get_ylabel() == (
        "indirect effect, percentage points\nhatched: where the answer is read off,\n"
        f"left out of the scale; largest {last:.3g}".replace("-", "\N{MINUS SIGN}")
    )
    counted = [*hidden[:, :-1].ravel(), *mlp.ravel()]
    largest = np.abs(counted).max()
    low, high = bar.get_ylim()
    assert low == pytest.approx(max(np.min([hidden, mlp]), -largest))
    assert high == pytest.approx(min(np.max([hidden, mlp]), largest))


def far_above(made: Averages, by: float) -> Averages:
    """Averages with one large effect: where the answer is read off."""
    grid = made.stacks["decoder"].effects["hidden"]["probability"].mean
    grid[-1, -1] = by
    return made


@pytest.mark.parametrize("encoder", [False, True])
def test_where_the_answer_is_read_off_neither_colours_nor_rings_go(
    encoder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ring is on the largest of the cells that aren't hatched; a cell beyond the scale bears its number."""
    before = [
        one.norm.vmax for one in meshes(drawn(monkeypatch, plot_average, averages(encoder=encoder), Path("unused")))
    ]
    made = far_above(averages(encoder=encoder), 9.99)
    figure = drawn(monkeypatch, plot_average, made, Path("unused"))
    found = meshes(figure)
    assert [one.norm.vmax for one in found] == before
    grids = [(own, name) for own in made.stacks.values() for name in own.effects]
    for (own, name), mesh in zip(grids, found, strict=True):
        shown = np.ma.getdata(mesh.get_array())
        counted = np.where(own.readout(name)[own.num_prompts > 0], -np.inf, shown)
        ring = next(line for line in mesh.axes.lines if line.get_markerfacecolor() == "none")
        row, layer = (int(np.ravel(place)[0]) for place in (ring.get_ydata(), ring.get_xdata()))
        assert (row, layer) == np.unravel_index(counted.argmax(), counted.shape)
        assert sum(patch.get_hatch() is not None for patch in mesh.axes.patches) == own.readout(name).sum()
    assert "999" in texts(figure)
    (footnote,) = [text for text in texts(figure) if "each mediator's own scale of colors" in text]
    assert "hatched: where the answer is read off, left out of the scale; largest 999" in " ".join(footnote.split())


def test_nothing_is_explained_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one fact without intervals, with one mediator that restores no layer's output."""
    made = average_effects([made_trace(mediators=["mlp"])], resamples=20)
    figure = drawn(monkeypatch, plot_average, made, Path("unused"))
    said = "\n".join(texts(figure))
    assert "ring: the peak" in said
    for absent in ("[", "(n)", "hatched"):
        assert absent not in said
    assert "bands" not in "\n".join(texts(drawn(monkeypatch, plot_lines, made, Path("unused"))))
    decoder_only = dataclasses.replace(made_trace(subject=(0, 0)))
    assert "*" not in "\n".join(texts(drawn(monkeypatch, plot_prompt, decoder_only, "probability", Path("unused"))))


def test_tokens_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ["$a_1$", " x^2", "\n", " ", "Łódź", "an_uncommonly_long_token_$", " \ue123"]
    trace = dataclasses.replace(made_trace(tokens=tokens, subject=(1, 3)), prompt="what is $x_1$ of $\\frac$?")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of signs that no font has
        figure = drawn(monkeypatch, plot_prompt, trace, "probability", Path("unused"))
    first = figure.axes[0]
    labels = [one.get_text() for one in first.get_yticklabels()]
    assert labels == ["$a_1$", "x^2*", "\\n*", "␣", "Łódź", "an_uncommonly_long_…", "\\ue123"]
    assert not any(one.get_parse_math() for one in first.get_yticklabels())
    heading = figure._suptitle  # type: ignore[attr-defined]
    assert "what is $x_1$ of $\\frac$? → Seattle" in heading.get_text()
    assert not heading.get_parse_math()
    assert first.yaxis_inverted()
    assert drawable("a\tb") == "a\\tb"


def boxes_apart(figure: Figure) -> bool:
    """No two maps with their labels and titles overlap, the heading neither, and nothing leaves the picture."""
    heading = figure._suptitle.get_window_extent()  # type: ignore[attr-defined]
    found = [*(axes.get_tightbbox() for axes in figure.axes), heading]
    apart = [not first.overlaps(second.padded(-1)) for i, first in enumerate(found) for second in found[i + 1 :]]
    inside = [box.xmin >= -1 and box.ymin >= -1 and box.xmax <= figure.bbox.xmax + 1 for box in found]
    return all(apart) and all(inside)


@pytest.mark.parametrize(
    "trace",
    [
        made_trace(num_layers=2, mediators=["hidden"]),
        made_trace(num_layers=1, tokens=["a", "b"], subject=(0, 1), mediators=["mlp"]),
        made_trace(
            num_layers=48, tokens=[f" an_uncommonly_long_token_{place}" for place in range(20)], mediators=SEVEN
        ),
        made_trace(num_layers=6, mediators=SEVEN, decoder_tokens=["<pad>", "<mask>"]),
    ],
    ids=["small", "smallest", "large", "two stacks"],
)
def test_maps_do_not_overlap(trace: PromptTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert boxes_apart(drawn(monkeypatch, plot_prompt, trace, "probability", Path("unused")))


def test_a_late_site_does_not_pale_an_early_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mediator of which one cell is far above all others changes no other mediator's scale, as far as it is seen."""
    made = averages(encoder=False)
    stack = made.stacks["decoder"]
    stack.effects["mlp"]["probability"].mean[-1, -1] = 50.0
    before = meshes(drawn(monkeypatch, plot_average, averages(encoder=False), Path("unused")))
    found = meshes(drawn(monkeypatch, plot_average, made, Path("unused")))
    place = causal_plots.in_order(stack.effects).index("hidden")
    assert found[place].norm.vmax == max(before[place].norm.vmax, 500.0)  # never finer than a tenth of the largest
    stack.effects["mlp"]["probability"].mean[-1, -1] = 5 * before[place].norm.vmax / 100
    found = meshes(drawn(monkeypatch, plot_average, made, Path("unused")))
    assert found[place].norm.vmax == before[place].norm.vmax


@pytest.mark.parametrize("encoder", [False, True])
def test_maps_of_averages_have_a_scale_for_each_mediator_and_mark_the_peak(
    encoder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = averages(encoder=encoder)
    figure = drawn(monkeypatch, plot_average, made, Path("unused"))
    assert boxes_apart(figure)
    found = meshes(figure)
    grids = [one["probability"].mean for own in made.stacks.values() for one in own.effects.values()]
    assert len(found) == len(grids)
    names = [name for own in made.stacks.values() for name in own.effects]
    sizes = [
        100 * np.nanmax(np.abs(grid["probability"].mean[~own.readout(name)]))
        for own in made.stacks.values()
        for name, grid in own.effects.items()
    ]
    of_mediator = {name: max(size for size, other in zip(sizes, names, strict=True) if other == name) for name in names}
    scales = [max(of_mediator[name], max(sizes) / 10) for name in names]
    assert [one.norm.vmax for one in found] == pytest.approx(scales)
    assert [one.norm.vmin for one in found] == pytest.approx([-size for size in scales])
    stack = next(iter(made.stacks))
    peak = made.stacks[stack].peak("hidden")
    assert peak is not None
    first = figure.axes[0]
    (ring,) = [line for line in first.lines if line.get_markerfacecolor() == "none"]
    x, y = (float(np.ravel(one)[0]) for one in (ring.get_xdata(), ring.get_ydata()))
    label = first.get_yticklabels()[int(y)].get_text()
    assert (x, label.split(" (")[0]) == (peak.layer, peak.group)
    assert f"in layer {peak.layer}" in first.get_title("left")
    counts = dict(zip(made.stacks[stack].groups, made.stacks[stack].num_prompts.tolist(), strict=True))
    assert f"middle subject tokens ({counts['middle subject tokens']})" in [
        one.get_text() for one in first.get_yticklabels()
    ]


@pytest.mark.parametrize("encoder", [False, True])
def test_lines_share_an_axis_that_holds_every_interval(encoder: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = averages(encoder=encoder)
    figure = drawn(monkeypatch, plot_lines, made, Path("unused"))
    panels = [(own, row) for own in made.stacks.values() for row in np.flatnonzero(own.num_prompts)]
    assert len(figure.axes) == len(panels)
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    low, high = figure.axes[0].get_ylim()
    for axes, (own, row) in zip(figure.axes, panels, strict=True):
        assert axes.get_legend() is None
        lines = [line for line in axes.lines if len(line.get_xdata()) == 3]  # type: ignore[arg-type]
        for line, effects in zip(lines, own.effects.values(), strict=False):
            assert low < 100 * np.nanmin(effects["probability"].low[row])
            assert high > 100 * np.nanmax(effects["probability"].high[row])
            assert line.get_color() != "black"
        assert {tuple(np.ravel(line.get_ydata())) for line in lines} == {
            tuple(100 * effects["probability"].mean[row]) for effects in own.effects.values()
        }
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["hidden state", "attention severed", "MLP window"]
    below = min(axes.get_tightbbox().ymin for axes in figure.axes)
    assert legend.get_window_extent().ymax <= below + 1


def test_a_single_prompt_can_be_averaged_and_drawn(tmp_path: Path) -> None:
    made = average_effects([made_trace(subject=(1, 2), mediators=["hidden"])])
    for file in (*plot_average(made, tmp_path / "a"), *plot_lines(made, tmp_path / "b")):
        assert file.exists()
    assert "nan" not in shown(made)


def shown(made: Averages, outcome: Any = "probability") -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_averages(made, outcome))
    return console.export_text()


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a prompt that was traced, found 'left_out' with status 'wrong': rank 7"):
        plot_prompt(left_out(), "probability", tmp_path / "a")
    trace = made_trace()
    trace.corrupted[2] = np.nan
    with pytest.raises(ValueError, match="effects that are numbers, found none: choose an outcome that was computed"):
        plot_prompt(trace, "logit_difference", tmp_path / "a")
    for plot in (plot_average, plot_lines):
        with pytest.raises(ValueError, match="effects that are numbers, found none"):
            plot(average_effects([trace], 50), tmp_path / "a", "logit_difference")
    with pytest.raises(ValueError, match="at least one prompt that was traced, found none of 1"):
        write_effects_csv([left_out()], tmp_path / "a.csv")
    assert not list(tmp_path.iterdir())


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_every_effect_is_in_the_file(tmp_path: Path) -> None:
    traces = [made_trace("a", tokens=['"x",', "\n", "é", "d"], subject=(1, 2)), left_out()]
    rows = rows_of(write_effects_csv(traces, tmp_path / "new" / "effects.csv"))
    stack = traces[0].stacks["decoder"]
    assert len(rows) == 3 * 3 * 3 * 4
    for row in rows:
        layer, place = int(row["layer"]), int(row["place"])
        number = list(OUTCOMES).index(row["outcome"])  # type: ignore[arg-type]
        assert float(row["restored"]) == stack.restored[row["mediator"]][number, layer, place]
        assert float(row["spread"]) == stack.spread[row["mediator"]][number, layer, place]
        effect = traces[0].indirect_effect("decoder", row["mediator"], OUTCOMES[number])[layer, place]
        assert (float(row["indirect_effect"]), row["token"]) == (effect, csv_cell(stack.tokens[place]))
    groups = ["", "first subject token; last subject token", "first token after", "last token"]
    assert [row["group"] for row in rows[:4]] == groups
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["effects.csv"]


def test_every_average_is_in_the_file(tmp_path: Path) -> None:
    made = averages(encoder=True)
    rows = rows_of(write_averages_csv(made, tmp_path / "averages.csv"))
    cells = sum(len(own.groups) * 3 for own in made.stacks.values())
    assert len(rows) == 3 * 3 + cells * 3 * (3 + 1)  # outcomes; mediators and one difference
    for row in rows[9:]:
        own = made.stacks[row["stack"]]  # type: ignore[index]
        grid = (own.effects if row["effect"] == "indirect" else own.differences)[row["mediator"]][row["outcome"]]  # type: ignore[index]
        place = own.groups.index(row["group"]), int(row["layer"])
        for name in ("mean", "low", "high"):
            value = getattr(grid, name)[place]
            assert row[name] == ("" if math.isnan(value) else repr(float(value)))
        assert int(row["prompts"]) == own.num_prompts[place[0]]
    assert [row["effect"] for row in rows[:9:3]] == ["clean", "corrupted", "total"]
    assert float(rows[6]["low"]) == made.total_effect["probability"].low


def test_the_table_says_how_many_how_large_and_where() -> None:
    made = averages()
    text = shown(made)
    assert "12 traced, 1 wrong, 0 refused; facts: 7" in text
    total = UNITS["probability"].effect(made.total_effect["probability"])
    assert f"average total effect: {total} percentage points" in text
    for mediator, title in {"hidden": "hidden state", "mlp": "MLP window"}.items():
        peak = made.stacks["decoder"].peak(mediator)
        assert peak is not None
        (line,) = [one for one in text.splitlines() if one.strip().startswith(title)]
        mean, ends = UNITS["probability"].effect(peak.effect).split(" ", 1)
        assert line.split() == [*title.split(), mean, *ends.split(), str(peak.layer), *peak.group.split()]
    assert "encoder: hidden state" in shown(averages(encoder=True), "log_probability")
    assert "clean 0." in shown(averages(encoder=True), "log_probability")
