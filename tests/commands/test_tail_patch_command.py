"""`ftrace tail-patch` over a small real run, and one readable line for bad input."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ftrace.cli import main
from ftrace.files.manifests import write_json
from ftrace.runs import Run
from ftrace.scores import ScoreStore
from helpers import small_run

LEARNED = [0, 1, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of AdamW with stores of one kind, of two kinds, and of some queries."""
    folder = tmp_path_factory.mktemp("runs")
    made = small_run.make("encoder-decoder", folder / "made")
    run = small_run.write_run_folder(made, folder / "run")
    truth = np.zeros((len(made.data.train_rows), 4))
    for query, proponents in made.data.proponents.items():
        truth[proponents, query] = 1
    noise = np.random.default_rng(0).normal(0, 0.3, (2, *truth.shape))
    ids, queries = np.arange(len(truth)), np.arange(4)
    ScoreStore.write(run / "online", ids, queries, {"dot": truth + noise[0], "cosine": truth + noise[1]})
    ScoreStore.write(run / "bm25", ids, queries, {"bm25": truth + noise[0]})
    ScoreStore.write(run / "some", ids, queries[:2], {"dot": truth[:, :2]})
    learned(run)
    return folder


def learned(folder: Path) -> None:
    """Say which queries the run has learned."""
    run = Run(folder)
    found = {
        "rule": "paper", "query_ids": LEARNED, "asked": 4, "right_at_last": 3, "known_at_first": 0,
        "snapshots": ["step-00000001", "step-00000004"], "key": run.learned_key([run.snapshots[0], run.last_snapshot]),
    }  # fmt: skip
    write_json(folder / "learned_queries.json", {"paper": found})


def patch(run: Path, *arguments: object) -> int:
    return main(["tail-patch", f"--run={run}", *map(str, arguments)])


def table(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "table.json").read_text())
    return found


def pairs(folder: Path) -> list[dict[str, str]]:
    with (folder / "pairs.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_a_table_and_its_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = folder / "run", tmp_path / "out"
    assert patch(run, "online", "bm25", "-k", 3, f"--output_dir={out}") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Tail-patch of the top 3, in percentage points: 3 queries (learned, of 4), step-00000004" in printed
    assert "step: Adam, learning rate 0.000625, the snapshot's second moments" in printed  # 0.01 / 16
    assert "What kind of examples the top 3 are" in printed
    found = table(out)
    assert list(found["rows"]) == ["online dot", "online cosine", "bm25", "random examples", "ground truth"]
    assert found["step"]["optimizer"] == "adam"
    assert found["step"]["learning_rate"] == pytest.approx(0.01 / 16)
    assert (found["num_queries"], found["k"], found["snapshot"]) == (3, 3, "step-00000004")
    # The same scores are the same examples, and those are computed once.
    assert found["rows"]["online dot"] == found["rows"]["bm25"]
    rises = {(int(p["query_id"]), int(p["example_id"])): float(p["after"]) - float(p["before"]) for p in pairs(out)}
    assert len(rises) == found["num_pairs"] == len(pairs(out)) <= 3 * 3 * 4
    store = ScoreStore.open(run / "online")
    top = [np.mean([rises[query, example] for example in store.top(query, 3, "dot")[0].tolist()]) for query in LEARNED]
    assert found["rows"]["online dot"]["rise"]["mean"] == pytest.approx(np.mean(top))
    assert found["rows"]["ground truth"]["kinds"]["states the fact"]["share"]["mean"] == 1
    assert found["rows"]["random examples"]["minus_random"] is None
    assert "| online dot | " in (out / "table.md").read_text()
    assert len((out / "table.csv").read_text().splitlines()) == 6
    assert {file.name for file in out.iterdir()} == {"table.md", "table.csv", "table.json", "pairs.csv"}


def test_what_is_asked_for(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "run"
    given = ["online", "bm25", "--kinds", "cosine", "--queries=all", "--sample=2", "-k=2"]
    given += ["--snapshot=2", "--optimizer=sgd", "--learning_rate=0.5", "--by=kind"]
    assert patch(run, *given, "--memory_budget=1kB", f"--output_dir={tmp_path / 'a'}") == 0
    assert "step: SGD, learning rate 0.5" in capsys.readouterr().out
    found = table(tmp_path / "a")
    assert list(found["rows"])[:2] == ["online cosine", "bm25"]
    assert found["queries"] == "a sample of 4: all"
    assert (found["num_queries"], found["snapshot"]) == (2, "step-00000002")
    assert found["step"] == {"optimizer": "sgd", "learning_rate": 0.5, "description": "SGD, learning rate 0.5"}
    assert patch(run, *given, "--memory_budget=1GiB", f"--output_dir={tmp_path / 'b'}") == 0
    for one, other in zip(pairs(tmp_path / "a"), pairs(tmp_path / "b"), strict=True):
        assert float(one["after"]) == pytest.approx(float(other["after"]), abs=1e-6)


def test_stores_of_a_run_lie_in_its_folder(folder: Path, tmp_path: Path) -> None:
    assert main(["tail-patch", f"{folder / 'run' / 'bm25'}", "-k=1"]) == 0
    assert (folder / "run" / "tail-patch" / "table.json").exists()


def test_old_names_of_its_options(folder: Path, tmp_path: Path) -> None:
    for name, given in (
        ("old", ["--store", "online", "--store", "bm25", "--kind", "cosine"]),
        ("new", ["online", "bm25", "--kinds", "cosine"]),
    ):
        with contextlib.nullcontext() if name == "new" else pytest.warns(FutureWarning) as warned:
            assert patch(folder / "run", *given, "-k=1", f"--output_dir={tmp_path / name}") == 0
        if warned:
            told = {str(warning.message).partition(". ")[0] for warning in warned}
            assert told == {
                "ftrace tail-patch: store is now called stores", "ftrace tail-patch: kind is now called kinds",
            }  # fmt: skip
    assert table(tmp_path / "old") == table(tmp_path / "new")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "expected the folder of a score store, found nothing at"),
        (["bm25", "bm25"], "expected each score store once"),
        (["bm25", "-k=0"], "k: expected at least 1, found 0"),
        (["online", "--kinds=trak"], "kinds: expected some of ['cosine', 'dot'], found 'trak'"),
        (["online", "bm25", "--kinds=bm25"], "has none of ['bm25'], but ['dot', 'cosine']"),
        (["some"], "some: expected scores for each of the queries, found none for query 3"),
        (["bm25", "--snapshot=3"], "snapshot: expected last, first, or one of the steps [1, 2, 4], found 3"),
        (["bm25", "--snapshot=middle"], "snapshot"),
        (["bm25", "--optimizer=sgd"], "learning_rate: expected one, since the run was trained with adam"),
        (["bm25", "--optimizer=lion"], "optimizer"),
        (["bm25", "--learning_rate=-1"], "learning_rate: expected a number above 0, found -1.0"),
        (["bm25", "--sample=0"], "sample: expected at least 1, found 0"),
        (["bm25", "--memory_budget=0"], "memory_budget: expected at least 1, found 0"),
        (["bm25", "--memory_budget=lots"], "memory_budget: expected a number of bytes"),
        (["-k=1"], "store"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert patch(folder / "run", *arguments, f"--output_dir={tmp_path / 'out'}") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("optimizer", "arguments", "message"),
    [
        ("adafactor", [], "the run was trained with adafactor, which tail-patch doesn't take steps with. Give"),
        ("adafactor", ["--optimizer=adam", "--learning_rate=1"], "found ['col_var', 'row_var'] of torch.optim.Adafac"),
        (
            "sgd",
            ["--optimizer=adam", "--learning_rate=1"],
            "expected a snapshot with Adam's second moments, found none",
        ),
    ],
)
def test_runs_of_other_optimizers(
    optimizer: str, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = small_run.make("decoder-only", tmp_path / "made", optimizer=optimizer)
    run = small_run.write_run_folder(made, tmp_path / "run")
    ids = np.arange(len(made.data.train_rows))
    ScoreStore.write(run / "random", ids, np.arange(4), {"random": np.random.default_rng(0).random((len(ids), 4))})
    given = ["random", "--queries=all", "-k=2"]
    assert patch(run, *given, *arguments) == 2
    assert message in capsys.readouterr().err
    if optimizer == "sgd":
        assert patch(run, *given) == 0
        assert table(run / "tail-patch")["step"]["learning_rate"] == pytest.approx(0.01 / 16)


def test_stores_whose_scores_are_not_finite_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "run"
    store = ScoreStore.open(run / "bm25")
    scores = store.matrix().copy()
    scores[3, 1] = np.nan
    ScoreStore.write(run / "spoilt", store.example_ids, store.query_ids, {"dot": scores})
    assert patch(run, "spoilt", "-k=2") == 2
    error = capsys.readouterr().err
    assert "spoilt: expected finite scores, found 1 others in kind 'dot' of query 1. Score a run that" in error


def test_ones_own_data_without_ground_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = small_run.make("decoder-only", tmp_path / "made", optimizer="sgd")
    run = small_run.write_run_folder(made, tmp_path / "run")
    rows = [(made.data.train_rows, "train"), (made.data.query_rows, "queries")]
    for source, name in rows:
        texts = [{"inputs": row["inputs_pretokenized"], "targets": row["targets_pretokenized"]} for row in source]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, texts)))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] = {
        "class_path": "ftrace.data.FactCorpus",
        "init_args": {
            "train": str(tmp_path / "train.jsonl"), "queries": str(tmp_path / "queries.jsonl"),
            "data_dir": str(tmp_path / "cache"), "architecture": "decoder-only", "batch_size": 16,
            "tokenizer": str(made.data.data_path / "tokenizer"),
        },
    }  # fmt: skip
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    ids = np.arange(len(made.data.train_rows))
    ScoreStore.write(run / "random", ids, np.arange(4), {"random": np.random.default_rng(0).random((len(ids), 4))})
    assert patch(run, "random", "--queries=all", "-k=2") == 0
    assert "examples can't be sorted by kind" in capsys.readouterr().out
    assert list(table(run / "tail-patch")["rows"]) == ["random", "random examples"]
    assert "kind" not in pairs(run / "tail-patch")[0]
    assert patch(run, "random", "--queries=all", "-k=2", "--by=kind") == 2
    assert "by: examples can't be sorted by kind: expected facts of a relation" in capsys.readouterr().err
