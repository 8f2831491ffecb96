"""The ledger's picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ftrace.report import plot_ledger
from ftrace.scores import Ledger
from ftrace.scores.ledger import COLUMNS


def ledger(intervals: int = 5, accounts: bool = True) -> Ledger:
    generator = np.random.default_rng(0)
    columns = {name: generator.random((intervals, 8)) for name in COLUMNS}
    columns["learned"] = np.cumsum(columns["learned"], 0) > 2
    columns["predicted"][0] += 40  # the first stretch dwarfs the others
    if not accounts:
        columns |= dict.fromkeys(
            ("examples", "momentum", "decay", "uncovered", "projection"), np.full((intervals, 8), np.nan)
        )
    steps = 3 * np.arange(intervals)
    return Ledger(steps, steps + 3, np.arange(8), columns)


@pytest.mark.parametrize("accounts", [True, False])
def test_it_names_what_it_draws(accounts: bool, tmp_path: Path) -> None:
    text = plot_ledger(ledger(accounts=accounts), tmp_path / "ledger.svg", [2, 7]).read_text()
    named = ["examples", "momentum", "decay"] if accounts else ["predicted"]
    for label in [*named, "actual", "query 2", "query 7", "loss (nats)", "optimizer step"]:
        assert f"<!-- {label} -->" in text, label
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.svg"]


def test_a_single_interval_can_be_drawn(tmp_path: Path) -> None:
    assert plot_ledger(ledger(intervals=1), tmp_path / "ledger.png").stat().st_size > 10_000


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a ledger with at least one interval, found none"):
        plot_ledger(Ledger.empty(), tmp_path / "ledger.png")
    with pytest.raises(ValueError, match=r"expected queries of the ledger, found \[99\]"):
        plot_ledger(ledger(), tmp_path / "ledger.png", [1, 99])
