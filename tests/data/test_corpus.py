"""A user's own corpus: all forms of rows, what is worked out from them, and errors that name the row and the field."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ftrace.data import FactCorpus, fact_tables, fill_in, make_collator, train_word_tokenizer
from ftrace.files.claims import claimed

TRAIN = [
    {"id": "a", "inputs": "Oslo lies in <extra_id_0>", "targets": "<extra_id_0> Norway", "facts": ["in-Oslo", "n"]},
    {"id": 7, "inputs": "The capital of Norway is", "targets": "Oslo", "facts": "capital"},
    {"id": "c", "inputs_pretokenized": "<extra_id_0> rains", "targets_pretokenized": "<extra_id_0> It", "facts": None},
]
QUERIES = [
    {"inputs": "In which land is Oslo? <extra_id_0>", "targets": "<extra_id_0> Norway", "fact": "in-Oslo"},
    {"id": "q", "inputs": "Norway's capital is", "targets": "Oslo", "answers": ["Oslo", "Christiania"],
     "proponents": [7, "a"]},
    {"inputs": "Bergen lies in", "targets": "Norway"},
]  # fmt: skip


def write(file: Path, rows: list[Any]) -> str:
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def ready(tmp_path: Path, train: list[Any] = TRAIN, queries: list[Any] = QUERIES, **settings: Any) -> FactCorpus:
    files = write(tmp_path / "train.jsonl", train), write(tmp_path / "queries.jsonl", queries)
    data = FactCorpus(*files, data_dir=str(tmp_path / "cache"), batch_size=2, **settings)
    data.prepare_data()
    data.setup()
    return data


def test_rows_queries_and_proponents(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        data = ready(tmp_path)
    assert "3 training rows, 3 queries; 1 of these have no proponents and can't be evaluated" in caplog.text
    assert data.train_rows["example_id"][:] == [0, 1, 2]
    assert data.train_rows["name"][:] == ["a", "7", "c"]
    assert data.train_rows["facts"][:] == [["in-Oslo", "n"], ["capital"], []]
    assert data.query_rows["name"][:] == ["0", "q", "2"]
    assert data.query_rows["answers"][:] == [["Norway"], ["Oslo", "Christiania"], ["Norway"]]
    assert {query: ids.tolist() for query, ids in data.proponents.items()} == {0: [0], 1: [0, 1], 2: []}
    assert data.sentence_ids is None
    assert data.train_rows[0]["inputs_pretokenized"] == "Oslo lies in <extra_id_0>"


def test_whole_numbers_are_text_everywhere(tmp_path: Path) -> None:
    train = [
        {"id": 1, "inputs": "The tower was built in", "targets": 1889, "facts": [1, "two"]},
        {"id": "2", "inputs": 7, "targets": "x", "facts": 1},
    ]
    queries = [{"inputs": "Built in", "targets": 1889, "fact": 1, "answers": [1889, "eighty-nine"], "subject": 5}]
    queries += [{"text": 3, "proponents": [2, "1"]}]
    data = ready(tmp_path, train, queries, architecture="decoder-only")
    assert data.train_rows["facts"][:] == [["1", "two"], ["1"]]
    assert data.train_rows["targets_pretokenized"][:] == ["1889", "x"]
    assert data.train_rows["inputs_pretokenized"][:] == ["The tower was built in", "7"]
    assert data.query_rows["fact"][:] == ["1", None]
    assert data.query_rows["answers"][:] == [["1889", "eighty-nine"], ["3"]]
    assert data.query_rows["subject"][:] == ["5", None]
    assert {query: ids.tolist() for query, ids in data.proponents.items()} == {0: [0, 1], 1: [0, 1]}


def test_several_files_of_several_kinds_are_one_corpus(tmp_path: Path) -> None:
    files = [write(tmp_path / "1.parquet", TRAIN[1:2]), write(tmp_path / "2.jsonl", TRAIN[2:])]
    data = FactCorpus(files, write(tmp_path / "q.jsonl", QUERIES[2:]), data_dir=str(tmp_path))
    data.prepare_data()
    data.setup()
    assert data.train_rows["name"][:] == ["7", "c"]
    assert data.data_path != FactCorpus(files[:1], str(tmp_path / "q.jsonl"), data_dir=str(tmp_path)).data_path


def test_nothing_but_texts(tmp_path: Path) -> None:
    rows = [{"text": "Oslo lies in Norway ."}, {"text": "It rains ."}]
    data = ready(tmp_path, rows, rows[:1], architecture="decoder-only")
    assert data.proponents[0].tolist() == []
    batch = next(iter(data.example_dataloader()))
    end = data.tokenizer.eos_token_id
    for tokens, labels, row in zip(batch["input_ids"], batch["labels"], rows, strict=True):
        expected = [*data.tokenizer(row["text"], add_special_tokens=False).input_ids, end]
        assert tokens[: len(expected)].tolist() == labels[: len(expected)].tolist() == expected
        assert (labels[len(expected) :] == -100).all()
    assert fill_in(data.train_rows[0]["inputs_pretokenized"], data.train_rows[0]["targets_pretokenized"]) == (
        "Oslo lies in Norway ."
    )
    query = next(iter(data.query_dataloader()))
    assert query["answer_labels"][0, 0].tolist() == query["labels"][0].tolist()


def test_texts_need_a_decoder_only_model_also_once_they_are_there(tmp_path: Path) -> None:
    rows = [{"text": "Oslo lies in Norway ."}]
    for _ in range(2):
        with pytest.raises(ValueError, match=r'train.jsonl, row 1: expected "inputs" and "targets", which an encoder'):
            ready(tmp_path, rows, rows)
    ready(tmp_path, rows, rows, architecture="decoder-only")


def test_a_beginning_and_its_end(tmp_path: Path) -> None:
    data = ready(tmp_path, architecture="decoder-only")
    batch = make_collator(data.tokenizer, "decoder-only")([data.query_rows[1]])
    words = data.tokenizer.convert_ids_to_tokens
    assert words(batch["input_ids"][0]) == ["Norway", "'s", "capital", "is", "Oslo", "</s>"]
    assert words(batch["answer_input_ids"][0, 1])[-2:] == ["<unk>", "</s>"]  # no row says Christiania
    assert batch["answer_labels"][0, 1].tolist()[:4] == [-100] * 4


def bytes_of(text: str) -> list[int]:
    return list(text.encode())


class Bytes:
    """A tokenizer that begins texts with a token of its own, as Llama's does, and where spaces count."""

    eos_token_id, pad_token_id, bos_token_id = 1, 0, 2

    def __call__(self, texts: Any, add_special_tokens: bool = True) -> dict[str, Any]:
        begin = [2] if add_special_tokens else []
        ids = [[*begin, *bytes_of(text)] for text in ([texts] if isinstance(texts, str) else texts)]
        return {"input_ids": ids[0] if isinstance(texts, str) else ids}


def test_spaces_and_the_beginning_of_texts() -> None:
    rows = [
        {"example_id": 0, "inputs_pretokenized": "A is", "targets_pretokenized": "B"},
        {"example_id": 1, "inputs_pretokenized": "A is ", "targets_pretokenized": "B"},
        {"example_id": 2, "inputs_pretokenized": "", "targets_pretokenized": "A is B"},
        {"example_id": 3, "inputs_pretokenized": "<extra_id_0> is", "targets_pretokenized": "<extra_id_0> A"},
    ]
    batch = make_collator(Bytes(), "decoder-only")(rows)  # type: ignore[arg-type]
    texts = [
        bytes(ids[1 : int(mask.sum()) - 1].tolist()).decode()
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert texts == ["A is B", "A is B", "A is B", "<extra_id_0> is<extra_id_0> A"]
    assert batch["input_ids"][:, 0].tolist() == [2, 2, 2, 2]
    assert (batch["labels"] != -100).sum(1).tolist() == [3, 2, 7, 3]  # " B", "B", "A is B", " A" and the end
    assert torch.equal(batch["labels"][batch["labels"] != -100], batch["input_ids"][batch["labels"] != -100])


def test_a_learned_tokenizer_has_no_token_for_beginning() -> None:
    assert make_collator(train_word_tokenizer(["a b"]), "decoder-only").begin == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("train", "queries", "message"),
    [
        ([{"input": "a", "target": "b"}], QUERIES,
         r"train.jsonl, row 1: expected the fields \"inputs\" and \"targets\", \"messages\", .* or \"text\", found the "
         r"fields \['input', 'target'\]; nearest: \['input', 'target'\]"),
        ([{"inputs": "a", "target": "b"}], QUERIES, r"no field 'targets', found the fields .*; nearest: \['target'\]"),
        ([*TRAIN, {"inputs": "a", "targets": 4.5}], QUERIES, "row 4: field 'targets': expected text or a whole"),
        ([{"inputs": "a", "targets": " "}], QUERIES, "row 1: field 'targets': expected text, found none in it"),
        ([{"text": ""}], QUERIES, "row 1: field 'text': expected text, found none in it"),
        ([{**TRAIN[0], "facts": {"a": 1}}], QUERIES, "'facts': expected text or a list of texts, found {'a': 1}"),
        ([{**TRAIN[0], "facts": [3.5]}], QUERIES, r"'facts': expected text or a list of texts, found \[3.5\]"),
        ([{**TRAIN[0], "facts": [True]}], QUERIES, r"'facts': expected text or a list of texts, found \[True\]"),
        ([{**TRAIN[0], "id": True}], QUERIES, "field 'id': expected text or a whole number, found True"),
        ([{**TRAIN[0], "id": 1.0}], QUERIES, "field 'id': expected text or a whole number, found 1.0"),
        ([*TRAIN, {"id": "7", "text": "b"}], QUERIES, r"row 4: field 'id': expected an id of its own, .*row 1 \(from"),
        ([], QUERIES, "train: expected at least one row, found none"),
        (TRAIN, [], "queries: expected at least one query, found none"),
        (TRAIN, [{**QUERIES[0], "proponents": ["a", "z"]}], "queries.jsonl, row 1: field 'proponents': .*'z' is none"),
        (TRAIN, [{**QUERIES[0], "proponents": [1.5]}], r"'proponents': expected text or a list of texts, found"),
        (TRAIN, [{**QUERIES[0], "fact": [3]}], r"'fact': expected text or a whole number, found \[3\]"),
        (TRAIN, [{**QUERIES[0], "answers": [""]}], "'answers': expected text or a list of texts"),
        (TRAIN, [QUERIES[1], QUERIES[1]], "row 2: field 'id': expected an id of its own"),
    ],
    ids=str,
)  # fmt: skip
def test_malformed_rows_are_named(train: list[Any], queries: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ready(tmp_path, train, queries)
    assert not (tmp_path / "cache").exists()


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train: expected files, found none at .*nothing.jsonl"):
        FactCorpus(str(tmp_path / "nothing.jsonl"), str(tmp_path / "q.jsonl"))
    with pytest.raises(ValueError, match="queries: expected at least one file, found none"):
        FactCorpus(write(tmp_path / "t.jsonl", TRAIN), [])


def test_fingerprints_know_the_content_and_not_the_place(tmp_path: Path) -> None:
    """Counts and sizes of these corpora are the same."""
    swapped = [
        {**row, "targets": target} for row, target in zip(TRAIN[:2], ["<extra_id_0> Sweden", "Oslo"], strict=True)
    ]
    other = [{**row, "targets": target} for row, target in zip(TRAIN[:2], ["<extra_id_0> Norway", "Oslo"], strict=True)]
    found = []
    for place, rows in (("a", swapped), ("b", other), ("c", other)):
        (tmp_path / place).mkdir()
        found.append(ready(tmp_path / place, rows, QUERIES[:1]).fingerprint)
    assert found[0] != found[1]
    assert found[1] == found[2]


def test_finished_data_are_read_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ready(tmp_path)
    shutil.rmtree(made.data_path / "arrow")
    before = sorted(made.data_path.rglob("*"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(
        fact_tables, "claimed", lambda *_, **__: pytest.fail("a claim would be written beside the data")
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "own cache")
    assert ready(tmp_path).train_rows.to_list() == made.train_rows.to_list()
    assert sorted(made.data_path.rglob("*")) == before
    assert (tmp_path / "own cache").exists()


def test_a_run_that_needs_data_that_another_makes_waits_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = ready(tmp_path).data_path
    (folder / "manifest.json").unlink()
    with claimed(folder, "another run"):
        thread = threading.Thread(target=ready, args=[tmp_path])
        thread.start()
        said = ""
        while "waiting for another run (process" not in said:
            assert thread.is_alive()
            said += capfd.readouterr().err
        assert not (folder / "manifest.json").exists()
    thread.join()
    assert (folder / "manifest.json").exists()
