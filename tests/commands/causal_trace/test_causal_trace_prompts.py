"""`ftrace causal-trace` on a pretrained model and a file of prompts: bad ones among them, answers, noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers import traced_run
from helpers.causal_command import BARE, QUICK, code, prompts_file, traces_in

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
