"""`ftrace causal-trace`: from a run or a model to files and pictures, killed, resumed, shared, and bad input."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file

from ftrace.causal import CausalTracer, PromptTrace, read_trace, trace_file
from ftrace.cli import main
from ftrace.evaluation import LearnedQueries
from ftrace.runs import Run, newest_run
from ftrace.scores import ScoreStore
from helpers import traced_run, warm_python

ROOT = Path(__file__).parents[2]
QUICK = ["--accelerator=cpu", "--noise.samples=3", "--window=1"]
BARE = [*QUICK, "--pictures=0", "--effects_csv=false"]
PNG, PDF = b"\x89PNG", b"%PDF"


def code(*arguments: object) -> int:
    try:
        return main(["causal-trace", *(str(argument) for argument in arguments)])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the run of an architecture."""
    made: dict[str, Path] = {}

    def of(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = traced_run.make(architecture, tmp_path_factory.mktemp(architecture))
        return made[architecture]

    return of


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return traced_run.save_pretrained(tmp_path_factory.mktemp("model") / "tiny-gpt2")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the prompts that are traced, in order."""
    seen: list[str] = []
    trace = CausalTracer.trace

    def counted(self: CausalTracer, prompt: Any, corruption: Any) -> PromptTrace:
        seen.append(prompt.prompt.name)
        return trace(self, prompt, corruption)

    monkeypatch.setattr(CausalTracer, "trace", counted)
    return seen


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the averages' pictures, which take longer than all else."""
    for name in ("plot_average", "plot_lines"):
        monkeypatch.setattr(f"ftrace.commands.causal_trace.{name}", lambda *given: None)


def traces_in(folder: Path) -> dict[str, PromptTrace]:
    return {one.name: one for one in map(read_trace, sorted((folder / "prompts").glob("*.safetensors")))}


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def contents(folder: Path) -> dict[str, Any]:
    """What is in all files but pictures, which hold the time; safetensors orders a file's metadata as it likes."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    found: dict[str, Any] = {}
    for name, file in files.items():
        if file.suffix == ".safetensors":
            with safe_open(file, "np") as opened:
                found[name] = opened.metadata(), {key: one.tobytes() for key, one in load_file(file).items()}
        elif file.suffix not in (".png", ".pdf"):
            found[name] = file.read_bytes()
    return found


def prompts_file(folder: Path, *more: dict[str, Any]) -> Path:
    """Prompts of what the model knows, and more."""
    known = [
        {"prompt": f"{subject} lies in", "subject": subject, "answer": answer, "id": subject}
        for subject, answer in traced_run.FACTS
    ]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, [*known, *more])))
    return folder / "prompts.jsonl"


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
        "prompts", "pictures", "settings.json", "effects.csv", "average_effects.csv", "average.png", "average.pdf",
        "lines.png", "lines.pdf",
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
        (["--sample=2"], "has traces of other prompts"),
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
    assert "settings.json is damaged" in capsys.readouterr().err


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


BAD = {
    "no-subject": ({"prompt": "the lies in", "subject": "Ost", "answer": "Karmora"}, "Ost"),
    "twice": ({"prompt": "Ost and Ost lies in", "subject": "Ost", "answer": "Karmora"}, "Ost"),
    "no-answer": ({"prompt": "Ost lies in", "subject": "Ost", "answer": ""}, "no answer"),
    "unknown-answer": ({"prompt": "Ost lies in", "subject": "Ost", "answer": "Xyz"}, "tokens that the tokenizer knows"),
    "long": (
        {"prompt": "of the of the of the of Ost lies in", "subject": "Ost", "answer": "Velland"},
        "too long: expected at most 8 tokens, as the model takes, found 10",
    ),
    "foil": (
        {"prompt": "Ost lies in", "subject": "Ost", "answer": "Dwin Isles", "foil": "Dwin Velland"},
        "foil: expected one that begins with another token than the answer, found 'Dwin Velland'",
    ),
}


@pytest.mark.usefixtures("undrawn")
def test_prompts_of_ones_own_and_bad_ones_among_them(
    pretrained: Path, tmp_path: Path, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = prompts_file(tmp_path, *({**row, "id": name} for name, (row, _) in BAD.items()))
    out = tmp_path / "out"
    given = [f"--model={pretrained}", f"--prompts={file}", f"--output_dir={out}", *QUICK, "--pictures=2"]
    assert code(*given) == 0
    said = capsys.readouterr().out
    traces = traces_in(out)
    traced = {name for name, one in traces.items() if one.status == "traced"}
    assert traced == {subject.replace(" ", "-") for subject, _ in traced_run.FACTS}
    assert "6 of 11 prompts can't be traced:" in said
    for name, (_, reason) in BAD.items():
        assert traces[name].status == "refused"
        assert reason in traces[name].reason
        assert f"  {name}: {traces[name].reason}" in said
    assert {path.stem for path in (out / "pictures").iterdir()} == {"Marrow", "Quenby"}
    assert said.rstrip().splitlines()[-1].startswith("Wrote prompts/")
    calls.clear()
    assert code(*given) == 0
    assert {"long", "foil"} >= set(calls)  # those that were refused are tried again, which costs little


@pytest.mark.usefixtures("undrawn")
def test_an_answer_of_several_tokens_and_accepted_ones(pretrained: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Ost lies in", "subject": "Ost", "answer": "Dwin Isles", "id": "both"},
        {"prompt": "Ost lies in", "subject": "Ost", "answer": "Velland", "answers": ["Dwin Isles"], "id": "accepted"},
        {"prompt": "Ost lies in", "subject": "Ost", "answer": "Velland", "id": "wrong"},
    ]
    file = prompts_file(tmp_path, *rows)
    for answer in ("joint", "first"):
        out = tmp_path / answer
        assert (
            code(f"--model={pretrained}", f"--prompts={file}", f"--output_dir={out}", *BARE, f"--answer={answer}") == 0
        )
        traces = traces_in(out)
        assert [traces[name].status for name in ("both", "accepted", "wrong")] == ["traced", "traced", "wrong"]
        assert traces["accepted"].clean[0] > traces["both"].clean[0]
    first, joint = (traces_in(tmp_path / answer)["both"].clean[0] for answer in ("first", "joint"))
    assert first > joint > 0.5


@pytest.mark.usefixtures("undrawn")
def test_the_list_of_known_1000(pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "known_id": 7 + number, "subject": subject, "attribute": answer, "template": "{} lies in",
            "prediction": f" {answer}. It is", "prompt": f"{subject} lies in", "relation_id": "P30",
        }
        for number, (subject, answer) in enumerate(traced_run.FACTS)
    ]  # fmt: skip
    (tmp_path / "known_1000.json").write_text(json.dumps(rows))
    given = [f"--model={pretrained}", f"--prompts={tmp_path / 'known_1000.json'}", f"--output_dir={tmp_path / 'out'}"]
    authors = [
        "--mediators",
        "hidden",
        "mlp",
        "attention",
        "--answer=first",
        "--noise.draws=published",
        "--noise.seed=1",
    ]
    assert code(*given, *BARE, *authors) == 0
    traces = traces_in(tmp_path / "out")
    assert traces.keys() == {f"known-{7 + number}" for number in range(5)}
    assert all(list(one.stacks["decoder"].restored) == ["hidden", "mlp", "attention"] for one in traces.values())
    again = tmp_path / "again"
    assert code(*given[:2], f"--output_dir={again}", *BARE, *authors, "--suffix=true", "--max_tokens=30") == 0
    for name, one in traces_in(again).items():
        for mediator, grid in traces[name].stacks["decoder"].restored.items():
            np.testing.assert_allclose(one.stacks["decoder"].restored[mediator], grid, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kind", ["full_covariance", "tokens"])
def test_other_noise(kind: str, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"--model={pretrained}", f"--prompts={prompts_file(tmp_path)}", f"--output_dir={tmp_path / 'out'}"]
    assert code(*given, *BARE, f"--noise.kind={kind}", "--mediators", "hidden") == 0
    said = capsys.readouterr().out
    refused = [name for name, one in traces_in(tmp_path / "out").items() if one.status == "refused"]
    assert refused == (["Tarn-Hollow"] if kind == "tokens" else [])  # the only subject of two words
    assert ("no other subject has 2 tokens" in said) == (kind == "tokens")


@pytest.mark.usefixtures("undrawn")
def test_a_pretrained_encoder_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows nothing; and where nothing else is said, results go to runs/causal/MODEL."""
    monkeypatch.chdir(tmp_path)
    traced_run.save_pretrained(tmp_path / "models" / "t5", "encoder-decoder")
    given = ["--model=models/t5", f"--prompts={prompts_file(tmp_path)}", *BARE, "--only_correct=false"]
    assert code(*given, "--stacks", "encoder", "--dtype=float64") == 0
    traces = traces_in(tmp_path / "runs" / "causal" / "models-t5")
    assert {one.status for one in traces.values()} == {"traced"}
    assert all(one.stacks.keys() == {"encoder"} for one in traces.values())
    assert traces["Ost"].stacks["encoder"].tokens == ("Ost", "lies", "in", "<extra_id_0>", "</s>")


def test_no_prompt_is_answered_rightly(pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": f"{subject} lies in", "subject": subject, "answer": "of", "id": subject.split()[0].lower()}
        for subject, _ in traced_run.FACTS[:3]
    ]
    (tmp_path / "wrong.json").write_text(json.dumps([*rows, {**rows[0], "subject": "Ost", "id": "bad"}]))
    given = [f"--model={pretrained}", f"--prompts={tmp_path / 'wrong.json'}", f"--output_dir={tmp_path / 'out'}", *BARE]
    assert code(*given) == 2
    said = capsys.readouterr()
    error = said.err.strip().splitlines()[-1]
    assert "expected at least one prompt that the model answers rightly, found none of 4." in error
    ranks = sorted((one.rank, name) for name, one in traces_in(tmp_path / "out").items() if one.rank is not None)
    best = ", ".join(f"{name} (rank {rank})" for rank, name in ranks)
    assert f"The best ranks of answers' first tokens: {best}." in error
    assert "--only_correct false traces them all" in error
    assert "3 of 4 prompts are left out: the model answers them wrongly." in said.out
    assert "1 of 4 prompts can't be traced:" in said.out
    assert "bad: " in said.out
    assert not (tmp_path / "out" / "average.png").exists()


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


def test_the_demo_config(
    runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, on the newest version of a run: tables and pictures of both, joined."""
    versions = tmp_path / "runs" / "synth_demo"
    versions.mkdir(parents=True)
    run = shutil.copytree(runs("encoder-decoder"), versions / "version_10")
    (versions / "version_9").mkdir()
    fewer = ["--accelerator=cpu", "--pictures=1", "--join.pictures=1", "--noise.samples=3"]
    (versions / "version_9" / "config.yaml").write_text("no run at all")
    monkeypatch.chdir(tmp_path)
    assert code("--config", ROOT / "configs" / "causal_demo.yaml", *fewer) == 0
    said = " ".join(capsys.readouterr().out.split())
    out = run / "causal"
    for name in ("layer_profiles.csv", "joined.csv", "joined.json", "joined/"):
        assert name in said
    traces = {one.query_id: one for one in traces_in(out).values() if one.status == "traced"}
    assert {path.suffix for path in (out / "joined").iterdir()} == {".png", ".pdf"}
    assert len(list((out / "joined").iterdir())) == 2
    joined = {int(row["query_id"]): row for row in rows_of(out / "joined.csv")}
    assert joined.keys() == traces.keys()
    store = ScoreStore.open(run / "online")
    names = {f"{stack}.block.{layer}": (stack, layer) for stack in ("encoder", "decoder") for layer in (0, 1)}
    compared = 0
    for row in rows_of(out / "layer_profiles.csv"):
        query = int(row["query_id"])
        ids, _ = store.top(query, 10, "learning")
        places = np.searchsorted(store.example_ids, ids)
        assert joined[query]["example_ids"] == " ".join(map(str, ids.tolist()))
        own = store.parts(query, "layer", "learning")[row["part"]][places].sum()
        assert float(row["score"]) == pytest.approx(own, rel=1e-4, abs=1e-6)
        if row["stack"]:
            stack, layer = names[row["part"].removeprefix("model.")]
            assert (row["stack"], int(row["layer"])) == (stack, layer)
            effects = traces[query].indirect_effect(stack, "mlp")[layer]  # type: ignore[arg-type]
            assert float(row["causal_effect"]) == pytest.approx(effects.sum(), rel=1e-9)
            compared += 1
    assert compared == 4 * len(traces)
    for query, row in joined.items():
        assert float(row["total_effect"]) == pytest.approx(traces[query].total_effect(), rel=1e-9)
    summary = json.loads((out / "joined.json").read_text())
    assert summary["num_queries"] == len(traces)


@pytest.mark.usefixtures("undrawn")
def test_scores_of_a_decoder_only_run_by_another_kind(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs("decoder-only")
    for number, scores in enumerate(("online:update", str(run / "online"))):
        out = tmp_path / str(number)
        given = [f"--run={run}", f"--output_dir={out}", *BARE, f"--scores={scores}", "--join.pictures=0"]
        assert code(*given) == 0
        assert {"layer_profiles.csv", "joined.csv", "joined.json"} <= {path.name for path in out.iterdir()}
        assert not (out / "joined").exists()
    profiles = [rows_of(tmp_path / number / "layer_profiles.csv") for number in "01"]
    assert [row["score"] for row in profiles[0]] != [row["score"] for row in profiles[1]]  # update, and learning
    assert [row["causal_effect"] for row in profiles[0]] == [row["causal_effect"] for row in profiles[1]]


@pytest.mark.usefixtures("undrawn")
def test_windows_over_all_layers_say_nothing_of_layers(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"--run={runs('decoder-only')}", f"--output_dir={tmp_path}", "--accelerator=cpu", "--noise.samples=2"]
    assert code(*given, "--mediators", "mlp", "--pictures=0", "--scores=online", "--window=10") == 2
    assert "Take --window 1" in capsys.readouterr().err


def test_options_are_printed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert code("--run=somewhere", "--mediators", "hidden", "mlp", "--noise.scale=2", "--print_config") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["mediators"], printed["noise"]["scale"], printed["window"]) == (["hidden", "mlp"], 2.0, 10)
    assert (printed["join"]["mediator"], printed["run"], printed["model"]) == ("mlp", "somewhere", None)
    assert code("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in printed:
        described = text.partition(f" --{option}")[2].partition("(type:")[0].partition(" --")[0]
        assert len(described.split()) > 3, option
    assert "Some of hidden, attention_severed" in text


def test_the_demo_config_is_parsed(capsys: pytest.CaptureFixture[str]) -> None:
    config = ROOT / "configs" / "causal_demo.yaml"
    assert code("--config", config, "--print_config") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    for name, value in yaml.safe_load(config.read_text()).items():
        assert printed[name] == value if not isinstance(value, dict) else value.items() <= printed[name].items()


def layout(**changes: str) -> str:
    """GPT-2's, changed."""
    given = {"layer": "transformer.h.{layer}", "attention": ".attn", "mlp": ".mlp", "embedding": "transformer.wte"}
    return f"--layouts={json.dumps({'decoder': {**given, **changes}})}"


MODEL, RUN, FILE = "--model={model}", "--run={run}", "--prompts={prompts}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a run or a model, found neither"),
        ([RUN, MODEL], "expected a run or a model, found both"),
        ([MODEL], "prompts: expected a file of prompts for a pretrained model, found none"),
        (["--model={out}/nowhere", FILE], "model: can't load "),
        (["--model=nobody/has-this-model", FILE], "model: can't load 'nobody/has-this-model'"),
        (["--run={out}/nowhere"], "is not the folder of a run"),
        ([MODEL, "--prompts={out}/nowhere.jsonl"], "nowhere.jsonl"),
        ([MODEL, FILE, "--tokenizer={out}/nowhere"], "model: can't load"),
        ([RUN, "--snapshot=7"], "snapshot: expected last, first, or one of the steps [1, 8], found 7"),
        ([RUN, "--pictures=-1"], "pictures: expected at least 0, found -1"),
        ([RUN, "--sample=0"], "sample: expected at least 1, found 0"),
        ([RUN, FILE, "--queries=learned"], "queries: expected a run's own queries to choose the learned ones of"),
        ([RUN, "--window=0"], "window: expected at least 1 layer, found 0"),
        ([RUN, "--max_tokens=0"], "max_tokens: expected at least 1, found 0"),
        ([RUN, "--mediators", "hiden"], "hiden"),
        ([RUN, "--mediators", "cross_attention"], "mediators: the model has nothing to restore for 'cross_attention'"),
        ([RUN, "--stacks", "encoder"], "stacks: expected some of ('decoder',), as the model has, found 'encoder'"),
        ([RUN, "--noise.samples=0"], "noise.samples: expected at least 1, found 0"),
        ([RUN, "--noise.scale=-1"], "noise.scale: expected a number above 0, found -1"),
        ([RUN, "--noise.kind=pink"], "noise.kind"),
        ([RUN, "--noise.kind=tokens", "--noise.draws=published"], "noise.draws: expected"),
        ([RUN, "--outcome=chance"], "outcome"),
        ([RUN, layout(layer="h")], "layout: layer: expected {layer}"),
        ([RUN, layout(layer="h.{layer}")], "layout: layer: the model has no module"),
        ([RUN, layout(embedding="transformer.wpe")], "Is `embedding` the module of token embeddings?"),
        ([RUN, "--scores=nowhere"], "nowhere"),
        ([RUN, "--scores=online:dots"], "scores: expected one of the kinds ['learning', 'update'] of"),
        ([RUN, "--scores=flat"], "is not broken down by layer. Train with OnlineTracIn(breakdown=['layer'])"),
        ([RUN, FILE, "--scores=online"], "scores: expected a run and its own queries, whose ids a score store knows"),
        ([MODEL, FILE, "--scores=online"], "scores: expected a run and its own queries"),
        ([RUN, "--join.k=0"], "k: expected at least 1, found 0"),
        ([RUN, "--scores=online", "--join.mediator=hidde"], "mediator: expected one of ('hidden', 'attention_severed'"),
        (
            [RUN, "--scores=online", "--mediators", "hidden", "attention"],
            "join.mediator: expected one of those that are traced, ['hidden', 'attention'], found 'mlp'",
        ),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    runs: Callable[[str], Path],
    pretrained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    calls: list[str],
) -> None:
    run = runs("decoder-only")
    if not (run / "flat").exists():
        ScoreStore.write(run / "flat", np.arange(3), np.arange(8), {"dot": np.zeros((3, 8))})
    places = {"{model}": pretrained, "{run}": run, "{prompts}": prompts_file(tmp_path), "{out}": tmp_path}
    given = list(arguments)
    for name, place in places.items():
        given = [one.replace(name, str(place)) for one in given]
    out = tmp_path / "out"
    defaults = ["--accelerator=cpu", "--noise.samples=2", "--pictures=0", f"--output_dir={out}"]
    assert code(*defaults, *given) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("ftrace")
    assert message in error
    assert calls == []
    assert not (out / "prompts").exists()
