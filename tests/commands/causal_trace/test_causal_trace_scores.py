"""`ftrace causal-trace` joined with the scores of the same run: tables, pictures, and the demo config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ftrace.scores import ScoreStore
from helpers.causal_command import BARE, code, rows_of, traces_in

DEMO = Path(__file__).parents[3] / "configs" / "causal_demo.yaml"


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
    assert code("--config", DEMO, *fewer) == 0
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
