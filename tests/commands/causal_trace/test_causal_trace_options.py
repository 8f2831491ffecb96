"""Options of `ftrace causal-trace`: printed, explained, read from the demo config, and bad ones in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from ftrace.scores import ScoreStore
from helpers.causal_command import code, prompts_file

DEMO = Path(__file__).parents[3] / "configs" / "causal_demo.yaml"


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
    assert code("--config", DEMO, "--print_config") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    for name, value in yaml.safe_load(DEMO.read_text()).items():
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
        ([RUN, "--window=0"], "window: expected at least 1, found 0"),
        ([RUN, "--max_tokens=0"], "max_tokens: expected at least 1, found 0"),
        ([RUN, "--mediators", "hiden"], "hiden"),
        ([RUN, "--mediators", "cross_attention"], "mediators: the model has nothing to restore for 'cross_attention'"),
        ([RUN, "--stacks", "encoder"], "stacks: expected some of ('decoder',), as the model has, found 'encoder'"),
        ([RUN, "--noise.samples=0"], "samples: expected at least 1, found 0"),
        ([RUN, "--noise.scale=-1"], "scale: expected a number above 0, found -1"),
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
