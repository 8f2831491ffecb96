"""The picture of precision by the step at which queries were learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ftrace.evaluation import Estimate
from ftrace.evaluation.retrieval import LearnedBin, LearnedMethod
from ftrace.report import learned_when_plot, plot_learned_when
from helpers.drawn import drawn, texts

NONE = Estimate(0.5, np.nan, np.nan)


def bins(*ceilings: float, estimate: Estimate = NONE, methods: int = 2) -> list[LearnedBin]:
    of_methods = {f"method {number}": LearnedMethod(estimate, 1.0, None) for number in range(methods)}
    first = [*range(5, 5 + 30 * (len(ceilings) - 1), 30), -1]
    return [
        LearnedBin("learned", step, step + 15, 7, 1, ceiling, of_methods)
        if step >= 0
        else LearnedBin("never", -1, -1, 7, 0, ceiling, of_methods)
        for step, ceiling in zip(first, ceilings, strict=True)
    ]


def test_every_row_and_bin_is_drawn(tmp_path: Path) -> None:
    file = plot_learned_when(bins(0.9, 0.6, methods=12), tmp_path / "when.svg")
    written = file.read_text()
    for text in ("5 to 20", "7 queries, 1 forgotten", "never", "method 0", "method 11", "P@10"):
        assert f"<!-- {text}" in written or text in written
    assert [path.name for path in tmp_path.iterdir()] == ["when.svg"]


def test_the_most_that_is_possible_is_drawn_for_each_bin(monkeypatch: pytest.MonkeyPatch) -> None:
    """34% where 37% is possible nearly reaches the line, and the line nearly the top of the picture."""
    given = bins(0.37, 0.25, estimate=Estimate(0.34, 0.31, 0.36))
    figure = drawn(monkeypatch, learned_when_plot, plot_learned_when, given, Path("unused"))
    (axes,) = figure.axes
    segments = [path for lines in axes.collections for path in lines.get_segments()]  # type: ignore[attr-defined]
    level = sorted({float(path[0, 1]) for path in segments if path[0, 1] == path[1, 1]})
    assert level == pytest.approx([25, 37])
    assert {"ceiling 37", "ceiling 25"} <= set(texts(figure))
    assert 37 < axes.get_ylim()[1] < 45
    assert axes.get_legend() is None


@pytest.mark.parametrize("estimate", [NONE, Estimate(0.5, 0.4, 0.55)])
def test_intervals_are_named_where_there_are_any(estimate: Estimate, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(monkeypatch, learned_when_plot, plot_learned_when, bins(0.9, 0.6, estimate=estimate), Path("unused"))
    assert ("95% intervals" in figure.axes[0].get_ylabel()) is bool(np.isfinite(estimate.low))


def test_no_line_leads_to_queries_that_were_never_right(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(monkeypatch, learned_when_plot, plot_learned_when, bins(1, 1, 1), Path("unused"))
    positions = [np.asarray(line.get_xdata(), float) for line in figure.axes[0].lines]
    assert not any(len(line) > 1 and line.min() < 1.5 < line.max() for line in positions if line[0] != 0)


def test_no_bins_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one bin of queries, found none"):
        plot_learned_when([], tmp_path / "when.png")


def test_what_was_known_before_stands_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    known = replace(bins(1.0)[0], state="known", first=0, last=0)
    given = [known, *bins(1, 1, 1)]
    figure = drawn(monkeypatch, learned_when_plot, plot_learned_when, given, Path("unused"))
    assert any("before training" in text for text in texts(figure))
    positions = [np.asarray(line.get_xdata(), float) for line in figure.axes[0].lines]
    assert not any(len(line) > 1 and line.min() < 0.5 < line.max() for line in positions if line[0] != 0)
    assert figure.axes[0].get_xticks().tolist() == [-0.25, 1, 2, 3.25]
