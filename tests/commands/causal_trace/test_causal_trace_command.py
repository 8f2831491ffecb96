"""`ftrace causal-trace` on a run: files and pictures, killed and given again, other settings, several processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ftrace.causal import CausalTracer, PromptTrace, read_trace, trace_file
from ftrace.evaluation import LearnedQueries
from ftrace.run_folder import newest_run
from ftrace.runs import Run
from helpers import warm_python
from helpers.causal_command import BARE, QUICK, code, contents, prompts_file, rows_of, traces_in

ROOT = Path(__file__).parents[3]
PNG, PDF = b"\x89PNG", b"%PDF"


def learned(run: Path) -> list[int]:
    opened = Run(run)
    (batch,) = opened.data.query_dataloader()
    return opened.model.learned(batch).nonzero().flatten().tolist()


@pytest.mark.parametrize("architecture", ["decoder-only", "encoder-decoder"])
def test_a_runs_own_queries(
    architecture: str, runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = runs(architecture), tmp_path / "out"
    assert code(f"--run={run}", f"--output_dir={out}", *QUICK, "--pictures=1") == 0
    said = " ".join(capsys.readouterr().out.split())
    traces = traces_in(out)
    status = {trace.query_id: trace.status for trace in traces.values()}
    right = learned(run)
    assert len(right) >= 3
    assert status == {query: "traced" if query in right else "wrong" for query in range(8)}
    if len(right) < 8:
        assert f"{8 - len(right)} of 8 prompts are left out: the model answers them wrongly." in said
    assert f"Wrote prompts/, effects.csv, average_effects.csv, average.png, lines.png, pictures/ to {out}" in said
    assert {path.name for path in out.iterdir()} == {
        "prompts", "pictures", "settings.json", "files.json", "effects.csv", "average_effects.csv", "average.png",
        "average.pdf", "lines.png", "lines.pdf",
    }  # fmt: skip
    drawn = sorted(path.name for path in (out / "pictures").iterdir())
    assert len(drawn) == 2
    for picture in [*out.glob("*.p[nd][gf]"), *(out / "pictures").iterdir()]:
        assert picture.read_bytes().startswith(PNG if picture.suffix == ".png" else PDF)
    stacks = {"decoder"} if architecture == "decoder-only" else {"encoder", "decoder"}
    assert all(trace.stacks.keys() == stacks for trace in traces.values() if trace.status == "traced")
    check_tables(out, traces)


def check_tables(out: Path, traces: dict[str, PromptTrace]) -> None:
    """Both CSV files say what the prompts' files do, read without ftrace."""
    cells: dict[tuple[str, ...], list[float]] = {}
    for row in rows_of(out / "effects.csv"):
        key = row["prompt"], row["stack"], row["mediator"], row["outcome"]
        cells.setdefault(key, []).append(float(row["indirect_effect"]))
    expected = {}
    for name, trace in traces.items():
        numbers = load_file(trace_file(out, name))
        for stack, own in trace.stacks.items():
            for mediator in own.restored:
                for place, outcome in enumerate(("probability", "log_probability", "logit_difference")):
                    effects = numbers[f"{stack}/{mediator}/restored"][place] - numbers["corrupted"][place]
                    expected[name, stack, mediator, outcome] = effects.ravel()
    assert cells.keys() == expected.keys()
    for key, effects in expected.items():
        np.testing.assert_allclose(cells[key], effects, atol=1e-12)
    averages = rows_of(out / "average_effects.csv")
    files = [load_file(trace_file(out, name)) for name, trace in traces.items() if trace.status == "traced"]
    for effect, value in {
        "clean": np.mean([one["clean"][0] for one in files]),
        "corrupted": np.mean([one["corrupted"][0] for one in files]),
        "total": np.mean([one["clean"][0] - one["corrupted"][0] for one in files]),
    }.items():
        (row,) = (row for row in averages if (row["effect"], row["outcome"]) == (effect, "probability"))
        assert float(row["mean"]) == pytest.approx(value, rel=1e-9)
        assert float(row["low"]) <= value <= float(row["high"])
    for row in averages:
        if (row["effect"], row["outcome"], row["group"]) == ("indirect", "probability", "last token"):
            last = [
                float(one[f"{row['stack']}/{row['mediator']}/restored"][0, int(row["layer"]), -1] - one["corrupted"][0])
                for one in files
            ]
            assert float(row["mean"]) == pytest.approx(np.mean(last), rel=1e-9, abs=1e-12)


@pytest.mark.usefixtures("undrawn")
def test_killed_and_given_again(
    runs: Callable[[str], Path], tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole, out = runs("decoder-only"), tmp_path / "whole", tmp_path / "out"
    given = [f"--run={run}", *QUICK, "--pictures=0"]
    assert code(*given, f"--output_dir={whole}") == 0
    assert len(calls) == 8
    counted = CausalTracer.trace

    def killed(self: CausalTracer, prompt: Any, corruption: Any) -> PromptTrace:
        if len(calls) == 8 + 3:
            raise KeyboardInterrupt
        return counted(self, prompt, corruption)

    with monkeypatch.context() as patch:
        patch.setattr(CausalTracer, "trace", killed)
        with pytest.raises(BaseException):  # noqa: B017, PT011 - whatever Lightning makes of it
            assert code(*given, f"--output_dir={out}") == 0
    assert len(traces_in(out)) == 3
    assert code(*given, f"--output_dir={out}") == 0
    assert len(calls) == 8 + 8
    assert contents(out) == contents(whole)
    deleted, damaged = sorted((out / "prompts").iterdir())[1:3]
    names = {read_trace(deleted).name, read_trace(damaged).name}
    deleted.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-3])
    calls.clear()
    assert code(*given, f"--output_dir={out}") == 0
    assert set(calls) == names
    assert len(calls) == 2
    assert contents(out) == contents(whole)
    calls.clear()
    assert code(*given, f"--output_dir={out}", "--max_tokens=50", "--suffix=true", "--outcome=logit_difference") == 0
    assert calls == []  # none of which changes what is found
    assert contents(out) == contents(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--window=2"], "with another 'settings.window': expected 1, found 2"),
        (["--mediators", "mlp"], "with another 'settings.mediators': expected null, found"),
        (["--noise.samples=4"], "with another 'noise.samples': expected 3, found 4"),
        (["--noise.kind=uniform"], 'with another \'noise.kind\': expected "gaussian", found "uniform"'),
        (["--snapshot=first"], "has traces of another model"),
    ],
)
def test_another_setting_in_the_same_folder(
    changes: list[str], message: str, runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = runs("decoder-only"), tmp_path / "out"
    given = [f"--run={run}", f"--output_dir={out}", *BARE]
    kept = run.parent / "traced-once"
    if not kept.exists():
        assert code(f"--run={run}", f"--output_dir={kept}", *BARE) == 0
    shutil.copytree(kept, out)
    before = contents(out)
    assert code(*given, *changes) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(f"ftrace causal-trace: {out} has traces")
    assert message in line
    assert line.endswith("Remove it, or give another output_dir")
    assert contents(out) == before


def test_a_folder_whose_settings_are_damaged(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.json").write_text("{")
    assert code(f"--run={runs('decoder-only')}", f"--output_dir={tmp_path}", *BARE) == 2
    assert "settings.json' is damaged" in capsys.readouterr().err


def test_two_processes_write_the_same_files(pretrained: Path, tmp_path: Path) -> None:
    bad = [{"prompt": "nothing here", "subject": "Ost", "answer": "Velland"}]
    given = [f"--model={pretrained}", f"--prompts={prompts_file(tmp_path, *bad)}", *BARE]
    assert code(*given, f"--output_dir={tmp_path / 'one'}") == 0
    command = [
        "-m", "ftrace.cli", "causal-trace", *given, f"--output_dir={tmp_path / 'two'}", "--devices=2",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "PYTHONPATH": str(ROOT)}
    done = warm_python.run(*command, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Wrote") == 1
    assert "1 of 6 prompts can't be traced" in done.stdout
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.usefixtures("undrawn")
def test_a_sample_is_seeded(runs: Callable[[str], Path], tmp_path: Path) -> None:
    drawn = {}
    for name, options in {"a": [], "b": [], "c": ["--seed=3"], "all": ["--sample=99"]}.items():
        given = [f"--run={runs('decoder-only')}", f"--output_dir={tmp_path / name}", *BARE, "--only_correct=false"]
        assert code(*given, "--mediators", "hidden", "--sample=3", *options) == 0
        drawn[name] = set(traces_in(tmp_path / name))
    assert len(drawn["a"]) == len(drawn["c"]) == 3
    assert drawn["a"] == drawn["b"] != drawn["c"]
    assert len(drawn["all"]) == 8


@pytest.mark.usefixtures("undrawn")
def test_learned_queries_alone(runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs("decoder-only")
    learned = sorted(Run(newest_run(run)).data.query_rows["query_id"])[2:5]
    monkeypatch.setattr(Run, "learned", lambda self, rule=None: LearnedQueries("last", learned, 8, 3, 0, []))
    given = [f"--run={run}", f"--output_dir={tmp_path}", *BARE, "--only_correct=false", "--mediators", "hidden"]
    assert code(*given, "--queries=learned") == 0
    assert sorted(trace.query_id for trace in traces_in(tmp_path).values()) == learned
