"""`ftrace causal-trace --sample`: prompts that the model knows are counted, and a folder's prompts are added to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ftrace.causal import trace_file
from helpers.causal_command import BARE, code, contents, prompts_file, traces_in

HIDDEN = [*BARE, "--mediators", "hidden"]
WRONG = [{"prompt": f"{subject} lies of", "subject": subject, "answer": "the", "id": f"wrong-{subject[:4]}"}
         for subject in ("Marrow", "Quenby", "Tarn Hollow", "Ost", "Lune")]  # fmt: skip


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("sample", [1, 3, 5])
def test_so_many_are_traced_as_are_asked_for(
    sample: int, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], calls: list[str]
) -> None:
    out = tmp_path / "out"
    file = prompts_file(tmp_path, *WRONG)
    assert code(f"--model={pretrained}", f"--prompts={file}", f"--output_dir={out}", *HIDDEN, f"--sample={sample}") == 0
    status = {name: trace.status for name, trace in traces_in(out).items()}
    assert list(status.values()).count("traced") == sample
    # as if the model had been asked one after the other, until enough were right
    names = [*("Marrow", "Quenby", "Tarn-Hollow", "Ost", "Lune"), *(row["id"] for row in WRONG)]
    order = [names[place] for place in np.random.default_rng(0).permutation(10)]
    last = [name for name in order if name in names[:5]][sample - 1]
    looked = order[: order.index(last) + 1]
    assert sorted(calls) == sorted(looked) == sorted(status)
    printed = said(capsys)
    assert f"Looked at {len(looked)} of 10 prompts, in an order drawn by seed 0, until {sample} were traced" in printed
    if len(looked) > sample:
        assert f"{len(looked) - sample} of {len(looked)} prompts are left out: the model answers" in printed


@pytest.mark.usefixtures("undrawn")
def test_more_than_the_model_knows(pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"--model={pretrained}", f"--prompts={prompts_file(tmp_path, *WRONG)}", f"--output_dir={tmp_path / 'out'}"]
    assert code(*given, *HIDDEN, "--sample=8") == 0
    assert "Looked at all 10 prompts: 5 are traced, of 8 asked for." in said(capsys)


@pytest.mark.usefixtures("undrawn")
def test_a_larger_sample_continues_a_folder(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], calls: list[str]
) -> None:
    file = prompts_file(tmp_path, *WRONG)
    given = [f"--model={pretrained}", f"--prompts={file}", *HIDDEN]
    assert code(*given, f"--output_dir={tmp_path / 'once'}", "--sample=4") == 0
    assert code(*given, f"--output_dir={tmp_path / 'grown'}", "--sample=2") == 0
    before = set(traces_in(tmp_path / "grown"))
    calls.clear()
    said(capsys)
    assert code(*given, f"--output_dir={tmp_path / 'grown'}", "--sample=4") == 0
    every = set(traces_in(tmp_path / "grown"))
    assert set(calls) == every - before
    printed = said(capsys)
    assert (
        f"{len(before)} of {len(every)} prompts were in the folder already and are kept; {len(calls)} were added"
        in printed
    )
    assert contents(tmp_path / "grown") == contents(tmp_path / "once")
    calls.clear()
    assert code(*given, f"--output_dir={tmp_path / 'grown'}", "--sample=1") == 0
    assert calls == []
    assert f"The folder also has {len(every) - 1} traces of other prompts, not part of these results" in said(capsys)


@pytest.mark.usefixtures("undrawn")
def test_more_prompts_continue_a_folder(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], calls: list[str]
) -> None:
    """The unit of noise stays that of the first traces, so that all are alike."""
    few, out = prompts_file(tmp_path), tmp_path / "out"
    given = [f"--model={pretrained}", f"--prompts={few}", f"--output_dir={out}", *HIDDEN]
    few.write_text("".join(few.read_text().splitlines(keepends=True)[:2]))
    assert code(*given) == 0
    first = {trace.sigma for trace in traces_in(out).values()}
    calls.clear()
    said(capsys)
    prompts_file(tmp_path)
    assert code(*given) == 0
    assert sorted(calls) == ["Lune", "Ost", "Tarn-Hollow"]
    printed = said(capsys)
    assert "2 of 5 prompts were in the folder already and are kept; 3 were added." in printed
    assert f"The unit of noise is that of the folder's first traces, {next(iter(first)):.4g}." in printed
    assert {trace.sigma for trace in traces_in(out).values()} == first
    assert len(first) == 1


@pytest.mark.usefixtures("undrawn")
def test_a_prompt_of_the_same_name(pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = prompts_file(tmp_path), tmp_path / "out"
    given = [f"--model={pretrained}", f"--prompts={file}", f"--output_dir={out}", *HIDDEN]
    assert code(*given, "--sample=5") == 0
    before = contents(out)
    file.write_text(file.read_text().replace('"Quenby lies in"', '"of Quenby lies in"'))
    assert code(*given) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.endswith(
        "has traces of other prompts: of another one named 'Quenby'. Remove it, or give another output_dir"
    )
    assert contents(out) == before


@pytest.mark.usefixtures("undrawn")
def test_noise_that_is_drawn_from_all_subjects(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = prompts_file(tmp_path), tmp_path / "out"
    given = [f"--model={pretrained}", f"--prompts={file}", f"--output_dir={out}", *HIDDEN, "--noise.kind=tokens"]
    assert code(*given, "--sample=1") == 0
    assert code(*given) == 0  # all prompts' subjects are the same, however many are traced
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    assert code(*given) == 2
    assert "has traces whose noise is drawn from other subjects. Remove it" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_folder_of_one_set_of_prompts_as_once_written(
    pretrained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    calls: list[str],
) -> None:
    """Its traces are kept for the same prompts, and it takes no others."""
    from ftrace.causal import trace_folders

    class Once(trace_folders.TraceFolder):
        def __init__(self, *given: object) -> None:
            super().__init__(*given)  # type: ignore[arg-type]
            self.described = self._of_one_set

    file, out = prompts_file(tmp_path), tmp_path / "out"
    given = [f"--model={pretrained}", f"--prompts={file}", f"--output_dir={out}", *HIDDEN]
    with monkeypatch.context() as patched:
        patched.setattr("ftrace.causal.prediction.TraceFolder", Once)
        assert code(*given) == 0
    before = contents(out)
    calls.clear()
    assert code(*given) == 0
    assert calls == []
    assert contents(out) == before
    prompts_file(tmp_path, *WRONG)
    assert code(*given) == 2
    assert "has traces of other prompts, by an ftrace that can't add to them. Remove it" in capsys.readouterr().err
    assert trace_file(out, "Ost").exists()


def test_two_processes_trace_the_same_sample(runs: Callable[[str], Path], tmp_path: Path) -> None:
    import os

    from helpers import warm_python

    given = [f"--run={runs('decoder-only')}", *HIDDEN, "--sample=4"]
    assert code(*given, f"--output_dir={tmp_path / 'one'}") == 0
    command = ["-m", "ftrace.cli", "causal-trace", *given, f"--output_dir={tmp_path / 'two'}", "--devices=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "PYTHONPATH": str(Path(__file__).parents[3])}
    done = warm_python.run(*command, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Wrote") == 1
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
