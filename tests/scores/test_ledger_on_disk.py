"""The ledger as it is kept on disk and summed up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ftrace.scores import AnswerRecord, Ledger
from ftrace.scores.ledger import ACCOUNTS, COLUMNS


def ledger(**changes: list[list[float]]) -> Ledger:
    zeros = np.zeros((2, 3))
    columns = dict.fromkeys(COLUMNS, zeros)
    columns |= {
        "loss": np.array([[4.0, 4.0, 4.0], [3.0, 2.0, 4.0]]),
        "next_loss": np.array([[3.0, 2.0, 4.0], [1.0, 2.0, 4.0]]),
        "predicted": np.array([[1.0, 2.0, 0.0], [1.5, 0.0, 0.0]]),
        "examples": np.array([[0.9, 1.9, 0.0], [1.5, 0.0, 0.0]]),
        "momentum": np.array([[0.1, 0.1, 0.0], [0.0, 0.0, 0.0]]),
    }
    columns |= {name: np.array(values) for name, values in changes.items()}
    answers = AnswerRecord([0, 5, 8], [7, 8, 9], [[0, 1, 0], [0, 1, 0], [1, 0, 0]])
    return Ledger(np.array([0, 5]), np.array([5, 8]), np.array([7, 8, 9]), columns, answers=answers)


def test_it_says_in_one_line_what_explains_what_was_learned() -> None:
    assert str(ledger().summary()) == (
        "the scores explain 86% of what the queries learned (1.67 nats each); momentum 4%, decay 0%, curvature 10%"
    )


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"examples": 553.0}, "the scores add up to"),
        ({"examples": -553.0}, "the scores add up to -"),
        ({"next_loss": -np.inf}, "some of the queries' losses, or of their accounts, are infinite"),
        ({"predicted": np.inf}, "are infinite"),
    ],
    ids=str,
)
def test_what_explains_many_times_what_was_learned_is_in_doubt(changes: dict[str, float], doubt: str) -> None:
    found = ledger()
    for name, value in changes.items():
        found.columns[name] = np.full_like(found.actual, value)
    summary = found.summary()
    assert doubt in str(summary)
    assert str(summary).startswith("what explains the fall of the queries' losses is in doubt: ")
    assert "%" not in str(summary)
    assert not summary.shares
    assert "%" not in found._repr_html_().partition("<table")[2].partition("</table")[0]


def test_without_accounts_it_says_what_steps_explain() -> None:
    unknown = [[np.nan] * 3] * 2
    found = ledger(**dict.fromkeys(("examples", "momentum", "decay", "uncovered", "projection"), unknown))
    assert str(found.summary()) == "to first order, the steps explain 90% of what the queries learned (1.67 nats each)"


def test_accounts_are_named_where_they_are_more_than_nothing() -> None:
    """Momentum, decay and curvature always, without a minus before 0; the others where they come to 1%."""
    zeros = [0.0] * 3
    found = ledger(
        uncovered=[[0.0, 0.5, 0.0], zeros], projection=[[0.02, 0.0, 0.0], zeros], decay=[[-0.02, 0.0, 0.0], zeros]
    )
    said = str(found.summary())
    assert "; momentum 4%, decay 0%, uncovered 10%, curvature 10%" in said
    assert "projection" not in said


def test_forgetting_and_standing_still_are_said() -> None:
    before, after = [[1.0] * 3, [3.0] * 3], [[3.0] * 3, [4.0] * 3]
    rose = {"loss": before, "next_loss": after}
    explained = [[-1.9] * 3, [-1.0] * 3]
    told = str(ledger(**rose, predicted=explained, examples=explained).summary())
    assert told.startswith("the scores explain 97% of what the queries forgot (3 nats each)")
    told = str(ledger(**rose).summary())
    assert told.startswith("the scores predict a fall by 1.43 nats where a rise by 3 nats was measured")
    assert str(ledger(loss=before, next_loss=before).summary()) == "the queries' losses did not change"
    assert str(Ledger.empty().summary()) == "the queries' losses did not change"


def test_an_interval_in_which_nothing_was_booked_balances() -> None:
    nothing = {name: [[0.0] * 3, [1.0] * 3] for name in ("predicted", *ACCOUNTS)}
    assert ledger(**nothing).imbalance()[0] == 0


def test_learned_is_where_a_query_was_first_right() -> None:
    assert ledger().learned_steps().tolist() == [8, 0, -1]


def test_imbalance_is_told_by_interval() -> None:
    assert ledger().imbalance().max() < 1e-15
    off = ledger(examples=[[0.9, 1.9, 0.0], [1.2, 0.0, 0.0]]).imbalance()
    assert off[0] < 1e-15
    assert off[1] == pytest.approx(0.3 / 2.7)


def test_it_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    ledger().write(tmp_path / "ledger.parquet")
    again = Ledger.open(tmp_path / "ledger.parquet")
    for name in (*COLUMNS, "actual"):
        np.testing.assert_array_equal(again[name], ledger()[name])
    assert (again.steps.tolist(), again.next_steps.tolist(), again.query_ids.tolist()) == ([0, 5], [5, 8], [7, 8, 9])


@pytest.mark.parametrize("accounts", [True, False])
def test_a_ledger_from_before_rounding_had_an_account_is_read(accounts: bool, tmp_path: Path) -> None:
    unknown = {} if accounts else dict.fromkeys(ACCOUNTS, np.full((2, 3), np.nan).tolist())
    written = ledger(**unknown)
    written.write(tmp_path / "ledger.parquet")
    table = pq.read_table(tmp_path / "ledger.parquet")
    pq.write_table(table.drop_columns(["rounding"]), tmp_path / "ledger.parquet")
    opened = Ledger.open(tmp_path / "ledger.parquet")
    assert np.isnan(opened["rounding"]).all() == (not accounts)
    assert str(opened.summary()) == str(written.summary())


@pytest.mark.parametrize("content", [None, b"not a table"])
def test_a_damaged_file_is_named(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "ledger.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"ledger.parquet' is missing or no ledger"):
        Ledger.open(tmp_path / "ledger.parquet")
