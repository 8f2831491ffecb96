"""Texts by id: what is kept, what is found, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ftrace.scores import ScoreStore, ScoreWriter, Texts, stable_id
from helpers.made_store import make_ledger, make_store


def test_rows_are_found_by_id_in_the_order_asked_for() -> None:
    rows = [{"example_id": i, "text": f"text {i}", "answer": str(i)} for i in (9, 2, 5)]
    texts = Texts.of(rows, "example_id")
    assert texts.rows([5, 7, 9, 5]) == [rows[2], None, rows[0], rows[2]]
    assert texts.rows([]) == []


def test_rows_of_many_row_groups_are_found(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).permutation(25_000)
    texts = Texts.of(pa.table({"example_id": ids, "text": [f"text {i}" for i in ids]}), "example_id")
    texts.write(tmp_path / "texts.parquet")
    assert pq.ParquetFile(tmp_path / "texts.parquet").metadata.num_row_groups == 3
    wanted = [24_999, 0, 12_345]
    for read in (texts, Texts(tmp_path / "texts.parquet", "example_id")):
        rows = read.rows(wanted)
        assert [row and row["text"] for row in rows] == [f"text {i}" for i in wanted]


def test_only_texts_numbers_and_lists_of_them_are_kept() -> None:
    row = {
        "query_id": torch.tensor(3),
        "text": "who?",
        "answers": ["a", "b"],
        "loss": np.float32(0.5),
        "input_ids": torch.zeros(4),
        "mask": [torch.zeros(2)],
        "nothing": None,
    }
    assert Texts.of([row], "query_id").rows([3]) == [
        {"query_id": 3, "text": "who?", "answers": ["a", "b"], "loss": 0.5}
    ]


def test_a_column_may_be_missing_in_some_rows() -> None:
    texts = Texts.of([{"example_id": 1, "text": "a"}, {"example_id": 2, "text": "b", "answer": "B"}], "example_id")
    assert [row and row["answer"] for row in texts.rows([1, 2])] == [None, "B"]


def test_a_list_that_is_empty_in_one_row_group_has_texts_in_the_next() -> None:
    rows = ({"example_id": i, "text": "a", "facts": ["f"] if i == 15_000 else []} for i in range(20_000))
    texts = Texts.of(rows, "example_id")
    assert [row and row["facts"] for row in texts.rows([3, 15_000])] == [[], ["f"]]


def test_rows_of_other_ids_are_left_out() -> None:
    wanted = np.array([7, 2, 30_000])
    rows = [{"example_id": i, "text": f"text {i}"} for i in range(25_000)]
    for given in (rows, pa.Table.from_pylist(rows)):
        assert Texts.of(given, "example_id", wanted).ids.tolist() == [2, 7]


def test_texts_come_back_byte_for_byte() -> None:
    hostile = "[red]x[/red] \x1b[31m \x00 \u202eevil \u200b <b>&amp;</b> a\r\nb\tc \U0001f600 e\u0301 '\"\\"
    texts = Texts.of([{"example_id": 1, "text": hostile, "answers": [hostile]}], "example_id")
    assert texts.rows([1]) == [{"example_id": 1, "text": hostile, "answers": [hostile]}]


def test_a_relative_folder_with_a_colon_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path / "run:dot", ledger=make_ledger())
    monkeypatch.chdir(tmp_path)
    store = ScoreStore.open("run:dot")
    assert store.examples is not None
    assert store.ledger is not None


def test_half_of_a_surrogate_pair_becomes_an_escape() -> None:
    (row,) = Texts.of([{"example_id": 1, "text": "a\ud83db", "answers": ["\udc00"]}], "example_id").rows([1])
    assert row == {"example_id": 1, "text": "a\\ud83db", "answers": ["\\udc00"]}


def test_names_become_ids_and_are_kept() -> None:
    (row,) = Texts.of([{"example_id": "wiki/1", "text": "a"}], "example_id").rows([stable_id("wiki/1")])
    assert row == {"example_id": stable_id("wiki/1"), "text": "a", "name": "wiki/1"}


def test_texts_of_no_rows_have_none() -> None:
    texts = Texts.of([], "example_id")
    assert len(texts) == 0
    assert texts.rows([1]) == [None]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"example_id": 1}], "expected the columns 'example_id' and 'text'"),
        ([{"id": 1, "text": "a"}], "expected the columns 'example_id' and 'text'"),
        ([{"example_id": 1, "text": "a"}, {"example_id": 2}], "a text in each row, found 1"),
        ([{"example_id": 1, "text": "a"}, {"text": "b"}], "example_id: expected whole numbers"),
        ([{"example_id": 1.5, "text": "a"}], "example_id: expected whole numbers"),
        ([{"example_id": 4, "text": "a"}, {"example_id": 4, "text": "b"}], r"each example_id once, found \[4\]"),
        ([{"example_id": 1, "text": "a", "x": 1}, {"example_id": 2, "text": "b", "x": "y"}], "of one type each"),
    ],
)
def test_bad_rows_are_refused(rows: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Texts.of(rows, "example_id")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "texts.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"texts\.parquet is missing or damaged"):
        Texts(tmp_path / "texts.parquet", "example_id")


def _texts() -> tuple[Texts, Texts]:
    examples = Texts.of([{"example_id": i, "text": f"example {i}"} for i in (8, 3, 5)], "example_id")
    return examples, Texts.of([{"query_id": 0, "text": "who?", "answer": "me"}], "query_id")


def test_a_store_keeps_the_texts_of_its_ids(tmp_path: Path) -> None:
    examples, queries = _texts()
    ids, scores = np.array([3, 8]), {"dot": np.array([[0.5], [-1.0]])}
    store = ScoreStore.write(tmp_path / "a", ids, np.array([0]), scores, examples=examples, queries=queries)
    with ScoreWriter(tmp_path / "b", ids, np.array([0]), ["dot"]) as writer:
        writer.put("dot", scores["dot"])
        other = writer.finish(None, examples, queries)
    for written in (store, other):
        assert written.examples is not None
        assert written.queries is not None
        assert sorted(written.examples.ids.tolist()) == [3, 8]
        assert [row and row["text"] for row in written.examples.rows([8, 3])] == ["example 8", "example 3"]
        assert written.queries.rows([0]) == queries.rows([0])
    assert ScoreStore.write(tmp_path / "a", ids, np.array([0]), scores).examples is None  # replaced, texts and all


def test_texts_are_joined_later(tmp_path: Path) -> None:
    examples, queries = _texts()
    store = ScoreStore.write(tmp_path, np.array([3, 8]), np.array([0]), {"dot": np.zeros((2, 1))})
    assert store.examples is None
    joined = store.with_texts(examples)
    assert joined.examples is examples
    assert joined.queries is None
    assert ScoreStore.open(tmp_path).examples is None
    store.put_texts(examples, queries)
    for written in (store, ScoreStore.open(tmp_path)):
        assert written.examples is not None
        assert len(written.examples) == 2
        assert written.queries is not None


@pytest.mark.parametrize("column", ["answers", "facts", "proponent_ids"])
def test_a_single_value_is_a_list_of_one(column: str) -> None:
    value = 12 if column == "proponent_ids" else "Oslo"
    texts = Texts.of([{"query_id": 1, "text": "a", column: value}], "query_id")
    assert texts.rows([1]) == [{"query_id": 1, "text": "a", column: [value]}]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"example_id": [1, 1], "text": ["a", "b"]}, r"each example_id once, found \[1\]"),
        ({"example_id": [1, 2], "text": [3, 4]}, "texts under 'text', found int64"),
        ({"example_id": [1, 2], "text": ["a", None]}, "a text in each row, found 1 without"),
    ],
)
def test_files_of_others_are_checked(columns: dict[str, list[object]], message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "examples.parquet")
    with pytest.raises(ValueError, match=rf"examples.parquet: .*{message}"):
        Texts(tmp_path / "examples.parquet", "example_id").rows([1])


def test_a_file_that_is_damaged_inside_is_named(tmp_path: Path) -> None:
    file = tmp_path / "examples.parquet"
    Texts.of([{"example_id": i, "text": f"text {i}"} for i in range(100)], "example_id").write(file)
    content = file.read_bytes()
    file.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
    with pytest.raises(ValueError, match=r"examples\.parquet is missing or damaged"):
        Texts(file, "example_id").rows([1])


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    rows = [{"query_id": 0, "text": "a"}]
    store = ScoreStore.write(tmp_path / "s", np.array([1]), np.array([0]), {"dot": np.ones((1, 1))})
    for call in (store.put_texts, store.with_texts):
        with pytest.raises(ValueError, match="expected texts with 'query_id', found list"):
            call(queries=rows)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="expected texts with 'example_id', found those with 'query_id'"):
            call(examples=Texts.of(rows, "query_id"))
    with pytest.raises(ValueError, match="expected rows that map"):
        Texts.of(["a"], "query_id")  # type: ignore[list-item]
