"""What data sets say of their rows: texts as a person reads them, under the same names for all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftrace.data import FactCorpus, FactData, FtraceSynth, FtraceTrex, SynthSettings, fill_in
from ftrace.scores import Texts

HOSTILE = "[b]<extra_id_1> \x1b[31m\u202e <script>\n\t\u200b\U0001f600 e\u0301"


def described(data: FactData) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    data.prepare_data()
    data.setup()
    examples, queries = data.describe()
    assert data.describe()[0] is examples  # made once
    Texts.of(examples, "example_id"), Texts.of(queries, "query_id")
    return examples.to_pylist(), queries.to_pylist()


def test_synth(tmp_path: Path) -> None:
    synth = SynthSettings(
        num_entities=8, num_relations=3, num_facts=8, num_test_utterances=2, num_facts_per_utterance=2
    )
    data = FtraceSynth(synth, data_dir=str(tmp_path), num_queries=3)
    examples, queries = described(data)
    for said, row in zip(examples, data.train_rows, strict=True):
        assert said["text"] == fill_in(row["inputs_pretokenized"], row["targets_pretokenized"])
        assert "<extra_id" not in said["text"]
        assert all(answer in said["text"] for answer in said["answer"].split(", "))
        assert (said["example_id"], said["facts"], said["name"]) == (row["example_id"], row["facts"], row["guid"])
    assert len(queries) == 3
    for said, row in zip(queries, data.query_rows, strict=True):
        assert said["text"] == row["inputs_pretokenized"]
        assert said["answer"] in said["answers"]
        for name in ("query_id", "answers", "fact", "proponent_ids"):
            assert said[name] == row[name]


def test_trex(tmp_path: Path) -> None:
    examples, queries = described(FtraceTrex("sample", data_dir=str(tmp_path)))
    assert examples[0] == {
        "example_id": 0, "text": "Bluefield Motors hired Jory Stane .", "answer": "Bluefield Motors",
        "facts": ["P108,Q0135,Q0168"], "sentence_id": 0, "name": "0",
    }  # fmt: skip
    assert queries[0]["text"] == "Northgate Mills is located in <extra_id_0> ."
    assert queries[0]["answer"] == "Oskavia"


def test_corpus(tmp_path: Path) -> None:
    train = [
        {"id": "a", "inputs": f"{HOSTILE} lies in <extra_id_0>", "targets": "<extra_id_0> Norway", "facts": ["f"]},
        {"inputs": "The capital of Norway is", "targets": "Oslo"},
        {"text": f"It rains {HOSTILE}"},
    ]
    queries = [{"inputs": f"{HOSTILE} is", "targets": "Oslo", "fact": "f", "answers": ["Oslo", "Christiania"]}]
    files = []
    for name, rows in (("train", train), ("queries", queries)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files.append(str(file))
    data = FactCorpus(*files, data_dir=str(tmp_path / "cache"), architecture="decoder-only")
    with pytest.raises(RuntimeError, match="setup"):
        data.describe()
    examples, asked = described(data)
    assert [row["text"] for row in examples] == [
        f"{HOSTILE} lies in Norway", "The capital of Norway is Oslo", f"It rains {HOSTILE}"
    ]  # fmt: skip
    assert [row["answer"] for row in examples] == ["Norway", "Oslo", None]
    assert [row["name"] for row in examples] == ["a", "1", "2"]
    assert asked == [
        {
            "query_id": 0, "text": f"{HOSTILE} is", "answer": "Oslo", "answers": ["Oslo", "Christiania"], "fact": "f",
            "proponent_ids": [0], "name": "0",
        }
    ]  # fmt: skip
