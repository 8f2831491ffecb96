"""The table: every row on one pool, ceilings, and files that say the same."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ftrace.evaluation import evaluate, render_table, write_tables
from ftrace.scores import ScoreStore

PROPONENTS = {0: [1, 2], 1: [30]}


def store(path: Path, examples: int = 40, kinds: tuple[str, ...] = ("dot",)) -> ScoreStore:
    scores = np.zeros((examples, 2))
    scores[[1, 2], 0] = [-1.0, -2.0]
    scores[scores == 0] = -3.0
    scores[5, 1], scores[30, 1] = -1.0, -2.0
    return ScoreStore.write(path, np.arange(examples), np.array([0, 1]), dict.fromkeys(kinds, scores))


def test_each_kind_of_each_store_is_a_row(tmp_path: Path) -> None:
    stores = {"online": store(tmp_path / "a", kinds=("dot", "cosine")), "bm25": store(tmp_path / "b", kinds=("bm25",))}
    table = evaluate(stores, PROPONENTS)
    assert list(table.rows) == ["online dot", "online cosine", "bm25"]
    row = table.rows["bm25"]
    assert row["MRR"] == 0.75
    assert (row["P@1"], row["P@3"]) == (0.5, pytest.approx((2 / 3 + 1 / 3) / 2))
    assert row["R@3"] == 1.0
    assert row["R@n"] == pytest.approx((1 + 0) / 2)
    assert table.ceiling["P@10"] == pytest.approx((0.2 + 0.1) / 2)
    assert table.ceiling["R@1"] == pytest.approx((0.5 + 1) / 2)
    assert (table.num_queries, table.num_candidates) == (2, 40)


def test_only_the_named_queries_count(tmp_path: Path) -> None:
    table = evaluate({"a": store(tmp_path / "a")}, {1: [30]}, "learned, of 2")
    assert table.rows["a dot"]["MRR"] == 0.5
    assert table.num_queries == 1


def test_printed_and_written(tmp_path: Path) -> None:
    table = evaluate({"a": store(tmp_path / "a")}, PROPONENTS, "learned, of 9")
    console = Console(file=io.StringIO(), width=100)
    console.print(render_table(table))
    text = console.file.getvalue()
    assert "2 queries (learned, of 9), 40 candidates each" in text
    assert "ceiling" in text
    json_file, csv_file = write_tables(table, tmp_path / "tables")
    assert json.loads(json_file.read_text())["rows"] == table.rows
    with csv_file.open() as stream:
        rows = {row["method"]: row for row in csv.DictReader(stream)}
    assert float(rows["a dot"]["MRR"]) == table.rows["a dot"]["MRR"]
    assert rows.keys() == {"a dot", "ceiling"}
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {"table.json", "table.csv"}


def test_rows_on_other_pools_are_refused(tmp_path: Path) -> None:
    stores = {"a": store(tmp_path / "a"), "b": store(tmp_path / "b", examples=41)}
    with pytest.raises(ValueError, match=r"expected all rows on the same pool of candidates, but .*\(b\) scores 41"):
        evaluate(stores, PROPONENTS)


def test_missing_proponents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 ground-truth proponents are not among the examples that it scores"):
        evaluate({"a": store(tmp_path / "a")}, {0: [1, 50, 51]})


def test_missing_queries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 evaluated queries have no scores, among them \[7\]"):
        evaluate({"a": store(tmp_path / "a")}, {7: [1]})
    with pytest.raises(ValueError, match=r"at least one query to evaluate, found none \(learned, of 3\)"):
        evaluate({"a": store(tmp_path / "a")}, {}, "learned, of 3")
