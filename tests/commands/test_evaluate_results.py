"""`ftrace evaluate FILE.jsonl ...`: files of results from the command line, and what can't be put together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftrace.cli import main


def write_file(file: Path, correct: dict[str, list[bool]], **fields: Any) -> Path:
    """A file as others would write it."""
    lines = []
    for name, marks in correct.items():
        lines.append(
            {
                "example_id": name,
                "query_set": "trex",
                "inputs_plaintext": f"Where is {name}?",
                "targets_plaintext": "There",
                "proponents": ["text"] * len(marks),
                "proponent_ids": [str(place) for place in range(len(marks))],
                "proponent_scores": [-place for place in range(len(marks))],
                "fact_id": name,
                "proponent_correct": marks,
                **fields,
            }
        )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    one = write_file(tmp_path / "ours.jsonl", {"a": [True, False], "b": [False, True], "c": [False]}, relation="P1")
    other = write_file(tmp_path / "bm25.jsonl", {"c": [True], "a": [False], "b": [False, False]}, relation="P1")
    return one, other


def evaluate(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments)])


def test_one_file(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(files[0], "--precision_at", 1, 2) == 0
    printed = capsys.readouterr().out
    assert "3 queries with labels" in printed
    assert "minus" not in printed
    found = json.loads((files[0].parent / "ours-evaluation" / "table.json").read_text())
    assert found["rows"] == {
        "ours.jsonl": pytest.approx({"MRR": 0.5, "recall@10": 2 / 3, "P@1": 1 / 3, "P@2": 1 / 3})
    }  # fmt: skip


def test_two_files(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert evaluate(*files, "--against=bm25.jsonl", "--by=relation", "--seed=3", f"--output_dir={out}") == 0
    printed = capsys.readouterr().out
    assert "minus bm25.jsonl, paired by query" in printed
    assert "by relation" in printed
    found = json.loads((out / "table.json").read_text())
    assert found["differences"]["means"]["ours.jsonl"]["MRR"] == pytest.approx(0.5 - 1 / 3)
    assert found["seed"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ours.jsonl", "ours.jsonl"], "expected each file once"),
        (["ours.jsonl", "store"], "expected score stores, or files of results (.jsonl, .jsonl.gz), found both"),
        (["ours.jsonl", "missing.jsonl"], "expected a file of results, found nothing at"),
        (["ours.jsonl", "--by=proponents"], "by: expected one of ['query_set', 'relation', 'c4_frequency_bucket']"),
        (["ours.jsonl", "--by=c4_frequency_bucket"], "by: expected results with a field 'c4_frequency_bucket'"),
        (["ours.jsonl", "--by=letter"], "by"),
        (["ours.jsonl", "--pool=candidates"], "pool: expected score stores, found files of results"),
        (["ours.jsonl", "--half=report"], "half: expected score stores, found files of results"),
        (["ours.jsonl", "--run=somewhere"], "run: expected score stores, found files of results"),
        (["ours.jsonl", "--against=our.jsonl"], "against: expected one of ['ours.jsonl'], found 'our.jsonl'"),
        (["ours.jsonl", "--precision_at=0"], "precision_at[0]: expected at least 1"),
        (["store", "--precision_at=5"], "precision_at: expected files of results, found score stores"),
        (["store", "--by=query_set"], "by: expected one of ['relation', 'proponents'] for score stores"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [one if one.startswith("-") else str(files[0].with_name(one)) for one in arguments]
    assert evaluate(*named, f"--output_dir={tmp_path / 'out'}") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
