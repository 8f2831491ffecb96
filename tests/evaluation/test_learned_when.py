"""Scores by the step at which their queries were learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftrace.evaluation import learned_when
from ftrace.scores import Ledger, ScoreStore, Sum
from ftrace.scores.ledger import COLUMNS

IDS, QUERIES = np.arange(20), np.array([3, 4, 5])
PROPONENTS = {3: [0, 1], 4: [2, 3], 5: [4, 5]}


def ledger(learned: list[list[float]]) -> Ledger:
    columns = {**dict.fromkeys(COLUMNS, np.zeros((3, 3))), "learned": np.array(learned)}
    return Ledger(np.array([0, 5, 10]), np.array([5, 10, 15]), QUERIES, columns)


def stores(tmp_path: Path, learned: Any = ((1, 0, 0), (0, 0, 0), (1, 1, 0))) -> tuple[ScoreStore, ScoreStore]:
    """Online scores that find every proponent; a snapshot's that are their opposite for the query learned first."""
    online = np.zeros((20, 3))
    for column, query in enumerate(QUERIES):
        online[PROPONENTS[int(query)], column] = 2
    online += np.linspace(0, 1, 20)[:, None]
    parts = {Sum("cosine"): online, Sum("cosine", "learned", "before"): 0.75 * online,
             Sum("cosine", "learned", "after"): 0.25 * online}  # fmt: skip
    first = ScoreStore.write(tmp_path / "online", IDS, QUERIES, parts, ledger=ledger(list(map(list, learned))))
    second = ScoreStore.write(tmp_path / "snapshot", IDS, QUERIES, {"cosine": online * [-1, 1, 1]})
    return first, second


def test_queries_are_put_into_bins_by_the_step_they_were_learned_at(tmp_path: Path) -> None:
    early, late, never = learned_when(*stores(tmp_path), PROPONENTS, bins=2)
    assert [(one.first, one.last, one.num_queries) for one in (early, late, never)] == [
        (5, 5, 1),
        (15, 15, 1),
        (-1, -1, 1),
    ]
    assert (early.online_precision, early.snapshot_precision) == (0.2, 0.0)
    assert (late.online_precision, late.snapshot_precision) == (0.2, 0.2)
    assert early.rank_correlation == pytest.approx(-1)
    assert late.rank_correlation == pytest.approx(1)
    assert early.before == pytest.approx(0.75)


def test_without_knowing_when_it_says_what_to_do(tmp_path: Path) -> None:
    online, snapshot = stores(tmp_path)
    with pytest.raises(
        ValueError, match=r"expected a ledger that knows when queries were right. Train with ledger=True"
    ):
        learned_when(snapshot, online, PROPONENTS)
    unknown = stores(tmp_path / "unknown", [[np.nan] * 3] * 3)
    with pytest.raises(ValueError, match="expected a ledger that knows"):
        learned_when(*unknown, PROPONENTS)
    with pytest.raises(ValueError, match="bins: expected at least 1, found 0"):
        learned_when(online, snapshot, PROPONENTS, bins=0)
    other = ScoreStore.write(tmp_path / "other", IDS[1:], QUERIES, {"cosine": np.zeros((19, 3))})
    with pytest.raises(ValueError, match="expected stores of the same examples"):
        learned_when(online, other, PROPONENTS)
