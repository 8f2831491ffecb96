"""The record of when each query was right: what it says of a query, and how it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftrace.files.digests import DamagedError
from ftrace.scores import AnswerRecord, ScoreStore
from helpers.made_store import make_ledger

STEPS = [0, 10, 20, 30]


@pytest.mark.parametrize(
    ("right", "state", "sentence"),
    [
        ([1, 1, 1, 1], "known", "answered right before training"),
        ([-1, 1, 1, 1], "known", "answered right at step 10, when it was first asked"),
        ([0, 0, 1, 1], "learned", "first answered right at step 20"),
        ([0, 1, 0, 1], "learned again",
         "first answered right at step 10, forgotten in between, learned again at step 30"),
        ([1, 0, 1, 1], "learned again",
         "answered right before training, forgotten in between, learned again at step 20"),
        ([0, 1, 1, 0], "forgotten", "first answered right at step 10, forgotten at step 30"),
        ([1, 0, 0, -1], "forgotten", "answered right before training, forgotten at step 10"),
        ([-1, 0, 0, 0], "never", "never answered right"),
        ([-1, -1, -1, -1], "unknown", "not known when it was answered right"),
    ],
)  # fmt: skip
def test_it_says_when_a_query_was_right(right: list[int], state: str, sentence: str) -> None:
    record = AnswerRecord(STEPS, [7], np.array(right)[:, None])
    answered = record.of(7)
    assert (answered.state, str(answered)) == (state, sentence)
    asked = [value for value in right if value >= 0]
    assert answered.is_right_at_end == (bool(asked[-1]) if asked else None)
    assert answered.was_known == (asked[:1] == [1])
    first = next((step for step, value in zip(STEPS, right, strict=True) if value == 1), -1)
    assert record.first_right_steps().tolist() == [first]
    assert answered.step == (first if asked else None)
    assert record.of(8).state == "unknown"
    assert record.counts() == {state: 1}


@pytest.mark.parametrize(
    ("steps", "right", "message"),
    [
        ([0, 5], [[1]], r"expected answers of each step and query, \[2, 1\], found \[1, 1\]"),
        ([5, 5], [[1], [1]], "expected the steps of evaluations in ascending order"),
        ([0, 5], [[1], [2]], "expected 1 where a query was right"),
    ],
)
def test_what_is_no_record_is_refused(steps: list[int], right: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnswerRecord(steps, [7], right)


def test_a_store_keeps_it_in_the_order_of_its_queries(tmp_path: Path) -> None:
    answers = AnswerRecord([0, 5], [3, 9], [[1, 0], [0, 1]])
    scores = {"dot": np.zeros((1, 3))}
    store = ScoreStore.write(tmp_path / "s", [1], [9, 4, 3], scores, answers=answers)
    assert store.answers is not None
    assert store.answers.right.tolist() == [[0, -1, 1], [1, -1, 0]]
    nothing = AnswerRecord([0], [3], [[-1]])
    assert ScoreStore.write(tmp_path / "n", [1], [3], {"dot": np.zeros((1, 1))}, answers=nothing).answers is None


def test_a_ledger_of_earlier_versions_is_read_without_the_start(tmp_path: Path) -> None:
    """It noted who was right at the end of each interval: what was before the first one is unknown."""
    ledger = make_ledger(answers=AnswerRecord([0], [0, 17], [[-1, -1]]))
    store = ScoreStore.write(tmp_path / "s", [1], [0, 17], {"dot": np.zeros((1, 2))}, ledger=ledger)
    assert store.answers is None
    table = pq.read_table(store.path / "ledger.parquet")
    earlier = table.append_column("learned", pa.array([0.0, 1.0, 1.0, 0.0, 1.0, np.nan]))
    (tmp_path / "earlier").mkdir()
    pq.write_table(earlier.replace_schema_metadata(table.schema.metadata), tmp_path / "earlier" / "ledger.parquet")
    answers = type(ledger).open(tmp_path / "earlier" / "ledger.parquet").answers
    assert answers.steps.tolist() == [0, 10, 20, 30]
    assert answers.right.tolist() == [[-1, -1], [0, 1], [1, 0], [1, -1]]
    assert str(answers.of(17)) == "answered right at step 10, when it was first asked, forgotten at step 20"


def test_damage_is_told(tmp_path: Path) -> None:
    answers = AnswerRecord([0, 5], [3], [[0], [1]])
    store = ScoreStore.write(tmp_path / "s", [1], [3], {"dot": np.zeros((1, 1))}, answers=answers)
    file = store.path / "answered_right.npy"
    content = bytearray(file.read_bytes())
    content[-1] = 7
    file.write_bytes(bytes(content))
    with pytest.raises(DamagedError, match=r"answered_right\.npy"):
        _ = ScoreStore.open(store.path).answers
