"""`ftrace index` and `ftrace search`: from a run to results, killed, resumed, by two processes, and bad input."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from ftrace.attribution import TrackStar
from ftrace.evaluation import seeded_sample
from ftrace.evaluation.results import read_results
from ftrace.index import GradientIndex
from ftrace.scores import ScoreStore
from helpers import script, small_run, warm_python
from helpers.command_line import code
from helpers.small_run import SmallRun

OPTIONS = ["--projection_side=2", "--accelerator=cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run.make("encoder-decoder", tmp_path_factory.mktemp("run"))


@pytest.fixture
def folder(run: SmallRun, tmp_path: Path) -> Path:
    return small_run.write_run_folder(run, tmp_path / "run")


def test_index_then_search_then_evaluate(run: SmallRun, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code("index", f"--run={folder}", *OPTIONS) == 0
    place = folder / "index-step-00000004"
    index = GradientIndex(place)
    assert index.num_rows == len(run.data.train_rows)
    assert index.manifest["left_out"]
    said = capsys.readouterr().out
    assert f"Wrote {index.num_rows} rows of 32 numbers in 8 blocks" in said
    assert "rank-one" in said

    assert code("search", f"--index={place}", "-k", "12") == 0
    said = capsys.readouterr().out
    assert "norms of rows, once for a task" in said
    (look,) = re.findall(r"Look at them: ftrace (.*)", said)
    assert code(*shlex.split(look), "--query=1", "--opponents=1") == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] in said
    results = list(read_results(place / "results.jsonl"))
    store = TrackStar(str(place)).score(run.task(folder / "trackstar"))
    assert len(results) == len(run.data.query_rows)
    for result in results:
        ids, scores = store.top(int(result.example_id), 12)
        assert list(result.proponents.ids) == ids.tolist()
        np.testing.assert_allclose(result.proponents.scores, scores, rtol=1e-5, atol=1e-6)
        worst, scores = store.top(int(result.example_id), 12, largest=False)
        assert result.opponents is not None
        assert list(result.opponents.ids) == worst.tolist()
        truth = set(run.data.proponents[int(result.example_id)].tolist())
        assert result.correct == tuple(one in truth for one in result.proponents.ids)
    assert code("evaluate", place / "results.jsonl") == 0
    assert "recall@10" in capsys.readouterr().out


def test_queries_that_nobody_had_thought_of(
    run: SmallRun, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows themselves; they are their own strongest proponents if queries count their ends as rows do."""
    folder = Path(shutil.copytree(folder, tmp_path / "counted"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["init_args"]["end_of_sequence"] = True
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    place = tmp_path / "index"
    assert code("index", f"--run={folder}", f"--output_dir={place}", *OPTIONS, "--dtype=float16") == 0
    row = run.data.train_rows[5]
    asked = [{"inputs": row["inputs_pretokenized"], "targets": row["targets_pretokenized"], "fact": row["facts"][0]}]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    arguments = [f"--index={place}", f"--queries={tmp_path / 'asked.jsonl'}", f"--output_file={tmp_path / 'r.jsonl'}"]
    assert code("search", *arguments, "-k", "3", "--autocorrelation=train", "--answers=one") == 0
    (result,) = read_results(tmp_path / "r.jsonl")
    assert result.proponents.ids[0] == 5  # a row is its own strongest proponent
    assert result.proponents.scores[0] == pytest.approx(1.0, abs=1e-3)
    assert result.correct is not None
    assert result.correct[0]
    capsys.readouterr()
    assert code("search", *arguments, "--against=tracin") == 2
    assert "against: expected the run's own queries" in capsys.readouterr().err


def test_another_corpus(run: SmallRun, folder: Path, tmp_path: Path) -> None:
    rows = [{"inputs": row["inputs_pretokenized"], "targets": row["targets_pretokenized"]}
            for row in run.data.train_rows.select(range(10, 30))]  # fmt: skip
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = f'--corpus=["{tmp_path / "corpus.jsonl"}"]'
    assert code("index", f"--run={folder}", corpus, f"--output_dir={tmp_path / 'other'}", *OPTIONS) == 0
    assert code("index", f"--run={folder}", f"--output_dir={tmp_path / 'own'}", *OPTIONS) == 0
    other, own = GradientIndex(tmp_path / "other"), GradientIndex(tmp_path / "own")
    assert other.num_rows == 20
    np.testing.assert_allclose(
        other.segments[0].rows(0, 20).numpy(), own.segments[0].rows(10, 30).numpy(), rtol=1e-4, atol=1e-5
    )
    assert code("search", f"--index={tmp_path / 'other'}", "-k", "2", "--sample=3", "--seed=1") == 0
    results = list(read_results(tmp_path / "other" / "results.jsonl"))
    drawn = seeded_sample(run.data.query_rows["query_id"], 3, seed=1)
    assert [int(result.example_id) for result in results] == drawn


def test_agreement_with_a_store_of_the_same_scores_is_whole(
    run: SmallRun, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code("index", f"--run={folder}", *OPTIONS) == 0
    place = folder / "index-step-00000004"
    TrackStar(str(place)).score(run.task(folder / "same"))
    assert code("search", f"--index={place}", "--against=same", "--show=0") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Pearson 1.000 in the median" in said
    assert "100% the same" in said


def test_approximate_search_tells_its_recall(run: SmallRun, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    assert code("index", f"--run={folder}", *OPTIONS) == 0
    place = folder / "index-step-00000004"
    assert code("search", f"--index={place}", "-k", "5", "--approximate=true", "--lists=4", "--probes=4") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Recall@5" in said
    assert "100.0% of proponents" in said


def test_killed_then_finished_by_two_processes(run: SmallRun, tmp_path: Path) -> None:
    folder = small_run.write_run_folder(run, tmp_path / "run")
    command = [
        script("in_small_shards"), "index", f"--run={folder}",
        "--shard_bytes=3000", *OPTIONS,
    ]  # fmt: skip
    environment = {
        **os.environ, "NOTES": str(tmp_path / "notes"), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    (tmp_path / "notes").touch()
    killed = warm_python.run(*command, env={**environment, "KILL_AFTER": "3"})
    assert killed.returncode == -9, killed.stderr[-2000:]
    place = folder / "index-step-00000004"
    with pytest.raises(ValueError, match="not finished"):
        GradientIndex(place)
    done = warm_python.run(*command, "--devices=2", env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Wrote") == 1
    ranks = (tmp_path / "notes").read_text().split()
    index = GradientIndex(place)
    assert len(ranks) == index.segments[0].num_shards  # none was written twice
    assert ranks.count("1") > 2
    assert index.segments[0].ids.tolist() == list(range(len(run.data.train_rows)))
    whole = tmp_path / "whole"
    assert code("index", f"--run={folder}", f"--output_dir={whole}", *OPTIONS) == 0
    expected = GradientIndex(whole).segments[0]
    np.testing.assert_allclose(
        index.segments[0].rows(0, len(expected)).numpy(), expected.rows(0, len(expected)).numpy(), rtol=1e-4, atol=1e-4
    )
    for block, R in expected.autocorrelation().items():
        np.testing.assert_allclose(index.segments[0].autocorrelation()[block].numpy(), R.numpy(), rtol=1e-3, atol=1e-3)


def test_trackstar_is_a_method(run: SmallRun, folder: Path) -> None:
    assert (
        code("attribute", "--method=trackstar", f"--run={folder}", "--method.projection_side=2", "--accelerator=cpu")
        == 0
    )
    store = ScoreStore.open(folder / "trackstar")
    assert store.kinds == ("cosine",)
    assert store.manifest["mix"]
    assert (folder / "trackstar-index" / "index.json").exists()


def test_a_plan(
    run: SmallRun, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftrace.commands.index_plan._MEASURED_SECONDS", 0.01)
    assert code("index", f"--run={folder}", *OPTIONS, "--plan=1e9", "--dtype=bfloat16") == 0
    said = capsys.readouterr().out
    assert "1,000,000,000" in said
    assert "machine" in said
    assert not (folder / "index-step-00000004").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--projection_side=3"], "projection_side: 2 there, 3 asked"),
        (["--projection_side=2", "--seed=1"], "seed: 0 there, 1 asked"),
        (["--projection_side=2", "--parameters=['*wi*']"], "blocks"),
        (["--projection_side=2", "--snapshot=2"], "snapshots"),
        (["--projection_side=2", "--snapshot=17"], "expected steps of"),
        (["--projection_side=0"], "projection_side: expected 1 to 4,096"),
        (["--projection_side=2", "--parameters=['nothing']"], "matches no parameter"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, changes: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"--output_dir={folder / 'index'}"
    assert code("index", f"--run={folder}", place, *OPTIONS) == 0
    capsys.readouterr()
    assert code("index", f"--run={folder}", place, "--accelerator=cpu", *changes) == 2
    err = capsys.readouterr().err
    (line,) = [one for one in err.splitlines() if one.startswith("ftrace index:")]
    assert message in line


def test_a_snapshot_that_changed_is_refused(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_run.write_run_folder(run, tmp_path / "run")
    assert code("index", f"--run={folder}", *OPTIONS) == 0
    snapshot, other = (folder / "snapshots" / f"step-0000000{step}" for step in (4, 2))
    capsys.readouterr()
    for name, message in (("weights.safetensors", "is damaged"), ("snapshot.json", "is not the one that")):
        shutil.copy(other / name, snapshot / name)
        assert code("search", f"--index={folder / 'index-step-00000004'}") == 2
        assert message in capsys.readouterr().err
        shutil.copy(other / "second_moments.safetensors", snapshot)


def test_a_process_without_work_is_no_error(run: SmallRun, tmp_path: Path) -> None:
    """One shard for two processes; then one that is gone, of the other process."""
    folder = small_run.write_run_folder(run, tmp_path / "run")
    place = folder / "index-step-00000004"
    command = ["-m", "ftrace.cli", "index", f"--run={folder}", *OPTIONS, "--devices=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = warm_python.run(*command, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert GradientIndex(place).num_rows == len(run.data.train_rows)


def test_an_index_that_was_moved_finds_its_snapshot_in_the_run(run: SmallRun, folder: Path, tmp_path: Path) -> None:
    assert code("index", f"--run={folder}", *OPTIONS) == 0
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    moved = (folder / "index-step-00000004").rename(tmp_path / "elsewhere" / "deep" / "index")
    assert code("search", f"--index={moved}", f"--run={folder}", "-k", "2") == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["-k", "0"], "k: expected at least 1"),
        (["--approximate=true", "--lists=5000"], "lists: expected at most"),
        (["--queries=nowhere.jsonl"], "nowhere.jsonl"),
        (["--queries=nowhere.jsonl", "--rule=last"], "queries: expected a run's own queries to choose the learned"),
    ],
)
def test_bad_searches_are_one_line(
    folder: Path, changes: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code("index", f"--run={folder}", *OPTIONS) == 0
    capsys.readouterr()
    assert code("search", f"--index={folder / 'index-step-00000004'}", *changes) == 2
    assert message in capsys.readouterr().err
