"""The ledger's picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from ftrace.report import ledger_plot, plot_ledger
from ftrace.scores import AnswerRecord, Ledger
from ftrace.scores.ledger import COLUMNS
from helpers.drawn import drawn, texts


def ledger(intervals: int = 5, accounts: bool = True, learned: int | None = None) -> Ledger:
    generator = np.random.default_rng(0)
    columns = {name: generator.random((intervals, 8)) for name in COLUMNS}
    columns["predicted"][0] += 40  # the first stretch dwarfs the others
    if not accounts:
        columns |= dict.fromkeys(
            ("examples", "momentum", "decay", "uncovered", "projection"), np.full((intervals, 8), np.nan)
        )
    steps = 3 * np.arange(intervals)
    right = np.arange(intervals + 1)[:, None] > np.arange(8)
    answers = AnswerRecord(
        3 * np.arange(intervals + 1), np.arange(8), right if learned is None else right * 0 + learned
    )
    return Ledger(steps, steps + 3, np.arange(8), columns, answers=answers)


@pytest.mark.parametrize("accounts", [True, False])
def test_it_names_what_it_draws(accounts: bool, tmp_path: Path) -> None:
    text = plot_ledger(ledger(accounts=accounts), tmp_path / "ledger.svg", [2, 7]).read_text()
    named = ["examples", "momentum", "decay"] if accounts else ["predicted"]
    for label in [*named, "actual fall", "query 2", "query 7", "loss, nats", "optimizer step"]:
        assert f"<!-- {label} -->" in text, label
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.svg"]


@pytest.mark.parametrize("learned", [0, 1, -1])
def test_marks_are_explained_where_there_are_any(learned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a way to know when a query is right, nothing is marked and nothing said of marks."""
    figure = drawn(monkeypatch, ledger_plot, plot_ledger, ledger(learned=learned), Path("unused"))
    is_marked = any(line.get_marker() not in ("", "None", None) for line in figure.axes[0].lines)
    assert is_marked is ("marked: first seen to be right" in texts(figure)) is (learned == 1)


def test_bars_are_as_high_as_the_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    edges, actual = np.array([0, 10, 20]), np.array([1.0, np.nan])
    figure = Figure()
    axes = figure.subplots()
    ledger_plot.draw_accounts(axes, edges, actual, {"examples": np.array([2, -1.0]), "$decay$": np.array([-3, -2.0])})
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    bottoms = [[bar.get_y() for bar in bars] for bars in axes.containers]
    assert heights == [[2, -1], [-3, -2]]
    assert bottoms == [[0, 0], [0, -1]]  # rises are stacked below 0
    assert axes.lines[0].get_ydata()[0] == 1  # type: ignore[index]


def test_a_single_interval_can_be_drawn(tmp_path: Path) -> None:
    assert plot_ledger(ledger(intervals=1), tmp_path / "ledger.png").stat().st_size > 10_000


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a ledger with at least one interval, found none"):
        plot_ledger(Ledger.empty(), tmp_path / "ledger.png")
    with pytest.raises(ValueError, match=r"expected queries of the ledger, found \[99\]"):
        plot_ledger(ledger(), tmp_path / "ledger.png", [1, 99])
