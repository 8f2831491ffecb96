"""`ftrace evaluate`: every option over a run made by hand, and one readable line for bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftrace.cli import main
from ftrace.evaluation import EvaluatedQueries
from ftrace.evaluation.retrieval import PoolSettings
from ftrace.runs import Run
from ftrace.scores import ScoreStore
from helpers.made_run import data_of, make_run, write_scores

NOISE = {"dot": 0.6, "cosine": 0.3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of one data set, each with an online store and a baseline."""
    folder = tmp_path_factory.mktemp("runs")
    data = data_of(folder / "data")
    for seed in range(3):
        run = make_run(folder / f"run_{seed}", folder / "data", [0, 1, 2, 3, 4, 6])
        write_scores(run / "online", data, NOISE, seed)
        write_scores(run / "bm25", data, {"bm25": 0.9}, seed + 10)
    return folder


def evaluate(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments)])


def table(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "table.json").read_text())
    return found


def test_a_table_and_its_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "run_0"
    assert evaluate(run / "online", run / "bm25", f"--output_dir={tmp_path}", "--by=relation") == 0
    printed = capsys.readouterr().out
    assert "6 queries (learned, of 8; 1 known at step 0, before training), 504 candidates each" in " ".join(
        printed.split()
    )
    assert "P@10 by relation" in printed
    assert "EMBED" in printed
    found = table(tmp_path)
    assert list(found["rows"]) == ["online dot", "online cosine", "bm25"]
    assert found["rows"]["online cosine"]["MRR"] > found["rows"]["bm25"]["MRR"]
    assert found["published"][0]["source"].startswith("Akyürek")
    assert (found["level"], found["half"], found["pool"]) == ("row", "all", "the whole training set")


def test_candidate_pools_need_scores_of_candidates_only(folder: Path, tmp_path: Path) -> None:
    run = folder / "run_0"
    settings = ["--pool=candidates", "--pools.bm25=10", "--pools.same_target=5", "--pools.random=20"]
    assert evaluate(run / "online", *settings, f"--output_dir={tmp_path / 'whole'}") == 0
    assert len(list((run / "candidate_pools").iterdir())) == 1
    (file,) = (run / "candidate_pools").iterdir()
    made = file.stat().st_mtime_ns
    pools = Run(run).candidate_pools(PoolSettings(10, 5, 20))
    assert file.stat().st_mtime_ns == made  # kept, not made anew
    assert len(pools.example_ids) < 504
    some = write_scores(run / "some", data_of(folder / "data"), NOISE, 0, pools.example_ids)
    assert evaluate(some.path, *settings, f"--output_dir={tmp_path / 'union'}") == 0
    whole, union = table(tmp_path / "whole"), table(tmp_path / "union")
    assert whole["rows"]["online dot"] == union["rows"]["some dot"]
    assert whole["num_candidates"]["most"] <= 62 + 10 + 5 + 20
    assert whole["pool"].startswith("all ground-truth proponents, the best 10 by BM25, 5 with the same target")
    assert evaluate(some.path, f"--output_dir={tmp_path / 'no'}") == 2
    assert not (tmp_path / "no").exists()


def test_several_runs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [folder / f"run_{seed}" for seed in range(3)]
    assert evaluate("online", "bm25", "--runs", *runs, "--against=bm25", f"--output_dir={tmp_path}") == 0
    found = table(tmp_path)
    each = [one["online dot"]["R@n"] for one in found["by_run"]]
    assert len(set(each)) > 1
    assert found["rows"]["online dot"]["R@n"] == pytest.approx(np.mean(each))
    assert found["spread"]["online dot"]["R@n"] == pytest.approx(np.std(each, ddof=1))
    printed = capsys.readouterr().out
    assert "6 + 6 + 6 queries" in printed
    assert "minus bm25, paired by query" in printed


def test_choices_are_made_on_the_other_half(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "run_1"
    assert evaluate(run / "online", run / "bm25", "--choose", "P@10", "bm*:MRR", f"--output_dir={tmp_path}") == 0
    found = table(tmp_path)
    assert list(found["rows"]) == ["best of online", "best of bm*", "online dot", "online cosine", "bm25"]
    assert found["half"] == "report"
    queries: EvaluatedQueries = Run(run).queries()
    report = queries.where(~queries.is_development & np.isin(queries.query_ids, [0, 1, 2, 3, 4, 6])).query_ids.tolist()
    with (tmp_path / "per_query.csv").open() as stream:
        assert {int(row["query_id"]) for row in csv.DictReader(stream)} == set(report)
    assert "report half" in capsys.readouterr().out
    assert evaluate(run / "online", "--half=development", f"--output_dir={tmp_path / 'd'}") == 0
    assert table(tmp_path / "d")["num_queries"] == 6 - len(report)


def test_stores_may_be_named_by_their_place_in_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert evaluate("online", "bm25", f"--run={folder / 'run_0'}", "--output_dir=out") == 0
    assert list(table(tmp_path / "out")["rows"]) == ["online dot", "online cosine", "bm25"]


def test_which_queries(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    online = folder / "run_0" / "online"
    assert evaluate(online, "--queries=all", f"--output_dir={tmp_path / 'all'}", "--published=false") == 0
    assert table(tmp_path / "all")["num_queries"] == 8
    assert "EMBED" not in capsys.readouterr().out
    for seed in (0, 0, 1):
        assert evaluate(online, "--sample=2", f"--seed={seed}", f"--output_dir={tmp_path / str(seed)}") == 0
    assert table(tmp_path / "0")["queries"] == "a sample of 6: learned, of 8; 1 known at step 0, before training"
    assert table(tmp_path / "0")["num_queries"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["online", "online"], "expected each score store once"),
        (["online", "--against=online cosin"], "against: expected one of ['online cosine', 'online dot'], found"),
        (["online", "--choose", "P@7"], "choose: expected one of ['P@"),
        (["online", "--choose", "tracin*:P@10"], "choose: expected a pattern of rows, found 'tracin*'"),
        (["online", "--choose", "P@10", "--half=all"], "half: expected report, found all"),
        (["online", "--level=sentence"], "level: expected rows that know their sentence"),
        (["online", "--sample=0"], "sample: expected at least 1, found 0"),
        (["online", "--pool=candidates", "--pools.bm25=-1"], "bm25: expected at least 0"),
        (["online", "--pool=some"], "pool"),
        (["half"], "expected all rows on the same pool, but"),
        (["nothing"], "expected the folder of a score store, found nothing at"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "run_2"
    if not (run / "half").exists():
        write_scores(run / "half", data_of(folder / "data"), NOISE, 0, np.arange(250))
    stores = [str(run / one) if not one.startswith("-") and ":" not in one and "@" not in one else one
              for one in arguments]  # fmt: skip
    assert evaluate(*stores, f"--output_dir={tmp_path / 'out'}") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_runs_and_run_exclude_each_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "run_0"
    assert evaluate("online", "--runs", run, f"--run={run}") == 2
    assert evaluate("online", "--runs", run, run) == 2
    assert evaluate(f"{run}/online", "--runs", run) == 2  # one store for all runs
    assert evaluate("missing", "--runs", run) == 2
    errors = capsys.readouterr().err
    assert "expected one of run and runs, found both" in errors
    assert "runs: expected each run once" in errors


def test_nothing_learned_says_what_to_do(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", folder / "data", [])
    online = ScoreStore.open(folder / "run_0" / "online")
    assert evaluate(online.path, f"--run={run}", f"--output_dir={tmp_path / 'out'}") == 2
    assert (
        "found none (learned, of 8; 1 known at step 0, before training). Train for longer, or take --queries all"
        in (capsys.readouterr().err)
    )


def test_options_from_a_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(folder / f"run_{seed}") for seed in range(2)]
    given = ["online", "bm25", "--runs", *runs, "--choose", "P@10", "--seed=3", f"--output_dir={tmp_path / 'out'}"]
    assert evaluate(*given) == 0
    first = table(tmp_path / "out")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        evaluate(*given, "--print_config")
    (tmp_path / "evaluate.yaml").write_text(capsys.readouterr().out)
    assert evaluate("--config", tmp_path / "evaluate.yaml") == 0
    assert table(tmp_path / "out") == first
    assert first["seed"] == 3
