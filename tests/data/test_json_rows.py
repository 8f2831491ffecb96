"""JSON files as the world writes them: what is accepted, and errors that name file and row."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftrace.data import read_prompts, read_queries
from ftrace.data.corpus_files import write_corpus
from ftrace.data.row_files import read_rows
from ftrace.data.trex_sources import open_trex
from ftrace.evaluation.results import Passages, RetrievalResult, read_results, write_results

ROW = '{"id": "a", "inputs": "x", "targets": "ü"}'
OTHER = ROW.replace('"a"', '"b"')
MARK = b"\xef\xbb\xbf"


def write(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def rows(file: Path) -> list[dict[str, Any]]:
    return [dict(row.fields) for row in read_rows(file)]


@pytest.mark.parametrize(
    "content",
    [
        MARK + f"{ROW}\n{OTHER}\n".encode(),
        MARK + f"{ROW}\n".encode() + MARK + f"{OTHER}\n".encode(),  # two files, one after the other
        MARK + b"\n" + f"{ROW}\r\n\r\n{OTHER}".encode(),
        MARK + f"[{ROW}, {OTHER}]".encode(),
        f"\n [\n{ROW}\n,\n{OTHER}\n]\n\n",
        json.dumps([json.loads(ROW), json.loads(OTHER)], indent=2, ensure_ascii=False),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz"])
def test_marks_blank_lines_and_lists(tmp_path: Path, content: str | bytes, name: str) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    file = write(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
    assert rows(file) == [json.loads(ROW), json.loads(OTHER)]


def test_an_empty_list_has_no_rows(tmp_path: Path) -> None:
    for text in ("[]", " [ ] \n", "", "\n", "\ufeff"):
        assert rows(write(tmp_path / "rows.json", text)) == []


ANYTHING = st.recursive(
    st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)


@given(st.lists(st.dictionaries(st.text(max_size=3), ANYTHING, max_size=3), max_size=4))
def test_a_list_is_read_as_json_reads_it(value: list[dict[str, Any]]) -> None:
    file = Path("rows.json")
    for text in (json.dumps(value), json.dumps(value, indent=3, ensure_ascii=False)):
        assert [row for _, row in _read(file, text)] == value


def _read(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    from ftrace.data.json_rows import _items

    start = text.index("[") + 1
    return _items(file, text, start)


def test_numbers_of_any_size_and_whole_characters_are_kept(tmp_path: Path) -> None:
    text = '{"id": 123456789012345678901234567890, "text": "\\ud83d\\ude00 \\u0000 \u2028"}'
    assert rows(write(tmp_path / "rows.jsonl", text)) == [
        {"id": 123456789012345678901234567890, "text": "😀 \0 \u2028"}
    ]


BAD = {
    "half of a pair": (ROW.replace('"x"', '"x \\ud83d"'), "field 'inputs': expected text, found half of a surrogate"),
    "the other half": (ROW.replace('"x"', '["y", {"z": "\\uDE00x"}]'), "field 'inputs': expected text, found half of"),
    "half of a pair in a name": ('{"\\ud83d": 1}', r"field '\\ud83d': expected text, found half of a surrogate pair"),
    "long number": (
        '{"id": ' + "9" * 5000 + "}",
        "expected JSON, found a number of more than 4,300 digits. Write it as",
    ),
    "deep": ('{"id": ' + "[" * 99_999 + "]" * 99_999 + "}", "expected JSON, found lists or objects nested too deep"),
    "trailing comma": ('{"id": 1,}', r"expected JSON, found '\{\"id\": 1,\}' \(.*\). Write each object in one line"),
    "two at once": (f"{ROW}{OTHER}", r"expected JSON, found '.*' \(Extra data: .*\). Write each object in one line"),
    "no object": ("3", "expected a JSON object, found 3"),
}


@pytest.mark.parametrize(("bad", "message"), BAD.values(), ids=list(BAD))
def test_rows_that_are_refused_are_named(tmp_path: Path, bad: str, message: str) -> None:
    file = write(tmp_path / "rows.jsonl", f"{ROW}\n\n{bad}\n{OTHER}\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl, row 3: {message}"):
        rows(file)
    if "Extra data" not in message:
        file = write(tmp_path / "rows.json", f"[{ROW},\n{bad}, {OTHER}]")
        with pytest.raises(ValueError, match=rf"rows\.json, row 2: {message.split(', found')[0]}"):
            rows(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{ROW}\n".encode("utf-16"), "row 1: expected UTF-8, found zero bytes, as UTF-16 has. Save the file as UTF-8"),
        (f"{ROW}\n".encode("utf-16-le"), "row 1: expected UTF-8, found zero bytes"),
        (f"[{ROW}]".encode("utf-16-be"), "row 1: expected UTF-8, found zero bytes"),
        (f"{ROW}\n".encode("utf-32"), "row 1: expected UTF-8, found zero bytes"),
        (b'{"id": 1}\n' + ROW.encode("latin-1"), r"row 2: expected UTF-8, found the byte 0xFC in '.*targets\": \"' \+"),
        (b'[{"id": 1}, ' + ROW.encode("latin-1") + b"]", "row 2: expected UTF-8, found the byte 0xFC in"),
        (b'{"id": 1}\n\xff', "row 2: expected UTF-8, found the byte 0xFF"),
        (b"[{} {}]", r"row 1: expected JSON, found '\{\} \{\}\]' \(Expecting ',' or '\]'"),
        (f"[{ROW}] {OTHER}".encode(), r"after row 1: expected JSON, found .*\(Extra data"),
        (f"[{ROW},]".encode(), r"row 2: expected JSON, found '\]'"),
        (f"[{ROW}".encode(), "row 1: expected JSON, found"),
        (json.dumps({"data": [1]}, indent=2).encode(), r"row 1: expected JSON, found '\{' .*or one list of them"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"rows\.json[l]?, {message}"):
        rows(write(tmp_path / "rows.json", content))


def test_damaged_archives(tmp_path: Path) -> None:
    whole = gzip.compress(f"{ROW}\n".encode() * 500)
    for data in (whole[:-12], whole[:30] + b"\0" * 20 + whole[50:], b"not gzip"):
        with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: can't be read \("):
            rows(write(tmp_path / "rows.jsonl.gz", data))


def corpus(file: Path) -> Any:
    query = write(file.with_name("query.jsonl"), ROW)
    return write_corpus(file.with_name("corpus"), read_rows(file), read_rows(query))


def queries_of_corpus(file: Path) -> Any:
    row = write(file.with_name("train.jsonl"), ROW)
    return write_corpus(file.with_name("corpus"), read_rows(row), read_rows(file))


def trex(file: Path) -> Any:
    write(file.with_name("queries.jsonl"), "{}")
    return list(open_trex(str(file.parent)).rows("abstracts"))


READERS = [corpus, queries_of_corpus, read_queries, read_prompts, lambda file: list(read_results(file)), trex]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", ["half of a pair", "the other half", "long number", "deep"])
def test_whoever_reads_rows_names_the_bad_one(tmp_path: Path, read: Callable[[Path], Any], kind: str) -> None:
    bad, message = BAD[kind]
    good = {
        "id": "z", "inputs": "x", "targets": "y", "prompt": "x is", "subject": "x", "answer": "y", "example_id": "z",
        "query_set": "q", "inputs_plaintext": "x", "targets_plaintext": "y", "proponents": [], "proponent_ids": [],
        "proponent_scores": [],
    }  # fmt: skip
    good = {name: value for name, value in good.items() if read is not queries_of_corpus or name != "proponents"}
    file = write(tmp_path / "abstracts.jsonl", f"{json.dumps(good)}\n{bad}\n")
    with pytest.raises(ValueError, match=rf"abstracts\.jsonl, row 2: {message}"):
        read(file)
    assert not (tmp_path / "corpus").exists()


def test_results_that_no_file_can_hold_are_not_written(tmp_path: Path) -> None:
    for given_text in ({"prompt": "\ud83d"}, {"prompt": "", "annotations": {"deep": ["\ude00"]}}):
        settings = {"example_id": "a", "query_set": "", "target": "", "proponents": Passages([], [], []), **given_text}
        with pytest.raises(ValueError, match="example_id 'a': expected text, found half of a surrogate pair"):
            write_results(tmp_path / "results.jsonl", [RetrievalResult(**settings)])
    assert not list(tmp_path.iterdir())
