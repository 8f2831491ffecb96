"""Files of texts: every format gives the same rows, and what is wrong is said by row."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftrace.data.text_files import read_texts
from ftrace.scores import Texts

HOSTILE = 'a "quoted", [red]text[/red] \x1b[31m\u202e <script>\r\nnew line\t\u200b\U0001f600 '
ROWS = [
    {"example_id": 7, "text": "Oslo lies in Norway", "answer": "Oslo"},
    {"example_id": -2, "text": HOSTILE, "answer": "x"},
]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    file = folder / name
    opener: Any = gzip.open if name.endswith(".gz") else open
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif ".csv" in name:
        with opener(file, "wt", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        with opener(file, "wt", encoding="utf-8") as stream:
            stream.write(json.dumps(rows) if ".jsonl" not in name else "\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "json.gz", "csv", "csv.gz", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    key, rows = read_texts(write(tmp_path, f"texts.{ending}", ROWS))
    assert (key, list(rows)) == ("example_id", ROWS)


def test_ids_are_of_examples_or_of_queries(tmp_path: Path) -> None:
    named = [{"id": "train/0", "text": "a"}, {"id": "train/1", "text": "b"}]
    key, rows = read_texts(write(tmp_path, "a.jsonl", named))
    texts = Texts.of(rows, key)
    assert key == "example_id"
    assert texts.column("name").to_pylist() == ["train/0", "train/1"]
    assert read_texts(write(tmp_path, "b.jsonl", [{"query_id": 3, "text": "a"}]))[0] == "query_id"


def test_numbers_of_digits_are_names_in_json_and_numbers_in_csv(tmp_path: Path) -> None:
    rows = [{"example_id": "7", "text": ""}]
    assert list(read_texts(write(tmp_path, "a.jsonl", rows))[1]) == rows
    assert list(read_texts(write(tmp_path, "a.csv", rows))[1]) == [{"example_id": 7, "text": ""}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"expected a file of texts that ends in \.jsonl"),
        ("a.jsonl", "", "expected at least one row, found none"),
        ("a.csv", "example_id,text\n", "expected at least one row, found none"),
        ("a.jsonl", '{"exampel_id": 1, "text": "a"}', r"row 1: expected the field \"example_id\".*nearest: \['exampel"),
        ("a.jsonl", '{"example_id": 1, "txt": "a"}', r"row 1: no field 'text', found.*nearest: \['txt'\]"),
        ("a.jsonl", '{"example_id": 1, "query_id": 1, "text": "a"}', "found both"),
        ("a.jsonl", '{"id": 1, "text": "a"}\n{"text": "b"}', "row 2: no field 'id', as the first row has"),
        ("a.jsonl", '{"id": 1.5, "text": "a"}', "expected a whole number or a name, found 1.5"),
        ("a.jsonl", '{"id": 1, "text": ["a"]}', "field 'text': expected text"),
        ("a.jsonl", '{"id": 1, "text": "\\ud800"}', "half of a surrogate pair"),
        ("a.csv", "example_id,text\n1,a,b\n", "row 2: expected 2 columns.*found 3"),
        ("a.csv", "text,text\n1,a\n", "each once"),
        ("a.csv", 'example_id,text\n1,"a"b\n', "can't be read as CSV"),
        ("a.csv", b"example_id,text\n1,\xff\n", "can't be read"),
    ],
)
def test_what_is_wrong_is_said_by_row(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        list(read_texts(file)[1])


def test_file_that_is_missing_is_said(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl"):
        with pytest.raises(ValueError, match="can't be read"):
            read_texts(tmp_path / name)


def test_ids_of_proponents_in_csv_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "texts.csv"
    file.write_text("query_id,text,proponent_ids\n1,a,12\n2,b,3 -5\n3,c,a name\n")
    _, rows = read_texts(file)
    assert [row["proponent_ids"] for row in rows] == [[12], [3, -5], "a name"]
