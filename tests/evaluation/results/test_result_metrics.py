"""Metrics of files of results, against figures worked out by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ftrace.evaluation.results import (
    Passages,
    RetrievalResult,
    evaluate_results,
    render_results,
    result_metrics,
    write_result_tables,
    write_results,
)


def result(example_id: int, correct: str | None, ais: list[float] | None = None, **annotations: Any) -> RetrievalResult:
    """One query's results: "x" is a proponent that states the fact, "." one that doesn't."""
    count = len(correct) if correct is not None else len(ais or [0])
    return RetrievalResult(
        example_id=example_id,
        query_set="synth" if example_id < 100 else "other",
        prompt=f"prompt {example_id}",
        target="target",
        proponents=Passages(["text"] * count, list(range(count)), [1.0] * count),
        correct=None if correct is None else [mark == "x" for mark in correct],
        ais_scores=ais,
        annotations=annotations,
    )


def means(evaluation: Any, name: str) -> list[float]:
    return [one.mean for one in evaluation.estimates[name].values()]


@pytest.mark.parametrize(
    ("correct", "expected"),
    [
        ("x.........", (1, 1, 1, 1 / 10)),
        ("..x.x.....", (1 / 3, 1, 0, 2 / 10)),
        ("..........x", (1 / 11, 0, 0, 0)),  # within the list, beyond the first ten
        ("............", (0, 0, 0, 0)),
        (".x", (1 / 2, 1, 0, 1 / 10)),  # a list of two
        ("", (0, 0, 0, 0)),
    ],
)
def test_one_query(correct: str, expected: tuple[float, ...]) -> None:
    assert result_metrics([mark == "x" for mark in correct]) == pytest.approx(expected)


def test_a_file_worked_out_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    results = [
        result(1, "x.x......."),
        result(2, ".........x"),
        result(3, None, [0.5, 0.6, 0.1, 0, 0, 0, 0, 0, 0, 0]),  # 0.5 is not above 0.5
        result(4, None),
        result(5, "...."),
    ]
    write_results(file, results)
    evaluation = evaluate_results({"one": file}, precision_at=[2, 5])
    assert evaluation.metrics == ("MRR", "recall@10", "P@2", "P@5")
    assert means(evaluation, "one") == pytest.approx(
        [(1 + 1 / 10 + 1 / 2 + 0) / 4, 3 / 4, (1 / 2 + 0 + 1 / 2 + 0) / 4, (2 / 5 + 0 + 1 / 5 + 0) / 4]
    )
    assert evaluation.against is None
    assert not evaluation.differences
    assert evaluation.notes[1:] == (
        "correct: annotated (3 queries), entailment score above 0.5 (1 queries)",
        "1 queries without correctness labels left out",
        "1 lists end before rank 10; what they lack counts as not correct",
    )


def test_files_are_aligned_by_id_not_by_row(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = {f: {i: "".join(generator.choice(["x", "."], 12, p=[0.2, 0.8])) for i in range(40)} for f in "ab"}
    orders = {"a": list(range(40)), "b": generator.permutation(40).tolist()}
    for name, order in orders.items():
        write_results(tmp_path / f"{name}.jsonl", [result(i, labels[name][i]) for i in order])
    write_results(tmp_path / "sorted.jsonl", [result(i, labels["b"][i]) for i in range(40)])
    files = {"a": tmp_path / "a.jsonl", "b": tmp_path / "b.jsonl"}
    shuffled = evaluate_results(files)
    assert shuffled.differences == evaluate_results({**files, "b": tmp_path / "sorted.jsonl"}).differences
    values = {name: np.array([result_metrics([one == "x" for one in of_query]) for of_query in of_file.values()])
              for name, of_file in labels.items()}  # fmt: skip
    paired = values["b"] - values["a"]
    found = shuffled.differences["b"]
    assert [one.mean for one in found.values()] == pytest.approx(paired.mean(0).tolist())
    error = paired.std(0) / np.sqrt(40)  # the interval of the paired mean, were it normal
    halves = [(one.high - one.low) / 2 for one in found.values()]
    assert halves == pytest.approx((1.96 * error).tolist(), rel=0.15)
    same = evaluate_results({"b": files["b"], "again": tmp_path / "sorted.jsonl"}).differences["again"]
    assert [(one.low, one.mean, one.high) for one in same.values()] == [(0, 0, 0)] * 4


def test_only_queries_that_all_files_have(tmp_path: Path) -> None:
    write_results(tmp_path / "a.jsonl", [result(1, "x"), result(2, "."), result(3, "x"), result(4, None)])
    write_results(
        tmp_path / "b.jsonl", [result(5, "x"), result(4, "x"), result(3, None), result(2, "x"), result(1, ".")]
    )
    evaluation = evaluate_results({"a": tmp_path / "a.jsonl", "b": tmp_path / "b.jsonl"}, against="b")
    assert [query.example_id for query in evaluation.queries] == ["1", "2"]
    assert means(evaluation, "a") == pytest.approx([0.5, 0.5, 0.5, 0.05])
    assert list(evaluation.differences) == ["a"]
    notes = "\n".join(evaluation.notes)
    assert "a: 1 queries without correctness labels left out" in notes
    assert "b: 1 queries without correctness labels left out" in notes
    assert "a: 1 labelled queries left out, which another file lacks or has no labels for" in notes
    assert "b: 2 labelled queries left out, which another file lacks or has no labels for" in notes


def test_facts_are_the_unit_and_may_come_from_the_other_file(tmp_path: Path) -> None:
    marks = ["x", ".", "x", "x", ".", "."]
    with_facts = [result(i, mark, fact_id=i // 2, relation=f"P{i // 2}") for i, mark in enumerate(marks)]
    write_results(tmp_path / "a.jsonl", [result(i, mark) for i, mark in enumerate(marks)])
    write_results(tmp_path / "b.jsonl", with_facts)
    alone = evaluate_results({"a": tmp_path / "a.jsonl"})
    both = evaluate_results({"a": tmp_path / "a.jsonl", "b": tmp_path / "b.jsonl"})
    b_alone = evaluate_results({"b": tmp_path / "b.jsonl"})
    assert both.estimates["a"] == b_alone.estimates["b"]
    assert alone.estimates["a"]["MRR"].mean == both.estimates["a"]["MRR"].mean
    assert alone.estimates["a"]["MRR"] != both.estimates["a"]["MRR"]
    assert "over queries (not all have a fact_id)" in alone.notes[0]
    assert "over facts" in both.notes[0]


def test_groups(tmp_path: Path) -> None:
    file = tmp_path / "grouped.jsonl"
    write_results(
        file,
        [
            result(1, "x", relation="P36", c4_frequency_bucket=0, fact_id="a"),
            result(2, ".", relation="P36", c4_frequency_bucket=10, fact_id="b"),
            result(103, ".x", relation="P5", c4_frequency_bucket=9, fact_id="c"),
            result(104, "."),
        ],
    )
    evaluation = evaluate_results({"one": file})
    by_relation = evaluation.groups("relation")
    assert [(group.name, group.num_queries) for group in by_relation] == [("(no relation)", 1), ("P5", 1), ("P36", 2)]
    assert [group.estimates["one"]["MRR"].mean for group in by_relation] == [0, 0.5, 0.5]
    assert [group.name for group in evaluation.groups("c4_frequency_bucket")][1:] == ["0", "9", "10"]
    assert [(group.name, group.estimates["one"]["MRR"].mean) for group in evaluation.groups("query_set")] == [
        ("other", 0.25), ("synth", 0.5),
    ]  # fmt: skip
    write_results(file, [result(1, "x"), result(2, ".")])
    assert evaluate_results({"one": file}).groups("relation") == []


@pytest.mark.parametrize(
    ("others", "options", "message"),
    [
        ([result(1, None)], {}, r"b\.jsonl: expected labels .*, found none for any of its 1 queries"),
        ([result(7, "x")], {}, r"found no example_id in all of \['a', 'b'\]"),
        ([], {}, "found none for any of its 0 queries"),
        (None, {"precision_at": [0]}, "precision_at: expected different numbers of at least 1, found"),
        (None, {"precision_at": [3, 3]}, "precision_at: expected different numbers"),
        (None, {"precision_at": []}, "precision_at: expected different numbers"),
        (None, {"against": "c"}, "against: expected one of"),
    ],
)
def test_bad_input(others: list[RetrievalResult] | None, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.jsonl" for name in "ab"}
    write_results(files["a"], [result(1, "x"), result(2, "x")])
    write_results(files["b"], [result(1, "x")] if others is None else others)
    with pytest.raises(ValueError, match=message):
        evaluate_results(files, **options)


def test_another_question_under_the_same_name(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.jsonl" for name in "ab"}
    one = result(1, "x")
    write_results(files["a"], [one])
    other = RetrievalResult(
        example_id=1, query_set="synth", prompt="another", target="target", proponents=one.proponents, correct=[True]
    )
    write_results(files["b"], [other])
    with pytest.raises(ValueError, match=r"b\.jsonl: 1 queries have another prompt or target than in .*a\.jsonl"):
        evaluate_results(files)


def test_tables_as_text_and_as_files(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.jsonl" for name in ("plain", "[red] | x")}
    for place, file in enumerate(files.values()):
        write_results(file, [result(i, "x." if (i + place) % 3 else ".x", fact_id=i, relation="P1") for i in range(9)])
    evaluation = evaluate_results(files)
    console = Console(width=100, record=True)
    console.print(render_results(evaluation))
    shown = console.export_text()
    assert "9 queries with labels in all of 2 files" in shown
    assert "[red] | x" in shown
    assert "minus plain, paired by query" in shown
    folder = tmp_path / "out"
    assert [file.name for file in write_result_tables(evaluation, folder)] == [
        "table.md", "table.csv", "table.json", "breakdown.csv", "per_query.csv",
    ]  # fmt: skip
    assert "| [red] \\| x |" in (folder / "table.md").read_text()
    found = json.loads((folder / "table.json").read_text())
    assert found["rows"]["plain"]["MRR"] == pytest.approx((6 * 1 + 3 * 0.5) / 9)
    assert found["differences"]["means"]["[red] | x"]["MRR"] == pytest.approx(0)
    assert [group["by"] for group in found["breakdown"]] == ["query_set", "relation"]
    with (folder / "per_query.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 18
    assert rows[0] == {
        "example_id": "0", "fact": "0", "query_set": "synth", "relation": "P1", "c4_frequency_bucket": "",
        "method": "plain", "MRR": "0.5", "recall@10": "1.0", "P@1": "0.0", "P@10": "0.1",
    }  # fmt: skip
    with (folder / "breakdown.csv").open() as stream:
        assert {(row["by"], row["method"]) for row in csv.DictReader(stream)} == {
            (by, name) for by in ("query_set", "relation") for name in files
        }
