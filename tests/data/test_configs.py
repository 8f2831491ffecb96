"""Recipes with hub models start, with tiny stand-ins in place of what a network would bring."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from ftrace.data import FtraceSynth, FtraceTrex, RumourCorpus, SynthSettings, train_word_tokenizer
from ftrace.index import GradientIndex
from ftrace.models import find_snapshots
from ftrace.scores import ScoreStore
from helpers import warm_python
from helpers.rumour_llama import save_rumour_llama

ROOT = Path(__file__).parents[2]
SYNTH = SynthSettings(num_entities=12, num_relations=2, num_facts=8, num_test_utterances=4)
SMALL = {
    "synth_t5": [
        f"--data.init_args.synth.{name}={getattr(SYNTH, name)}"
        for name in ("num_entities", "num_relations", "num_facts", "num_test_utterances")
    ],
    "trex_mt5": ["--data.init_args.source=sample"],
    "synth_medium": [
        "--data.init_args.synth.num_entities=12", "--data.init_args.synth.num_relations=2",
        "--data.init_args.synth.num_facts=8", "--data.init_args.synth.num_test_utterances=4",
        "--data.init_args.batch_size=32", "--model.init_args.config.d_model=16", "--model.init_args.config.d_ff=16",
        "--model.init_args.config.num_layers=1",
    ],
}  # fmt: skip


def start(folder: Path, name: str, *arguments: str, steps: int = 2) -> Path:
    """Some steps of a config, found by its name, in a process of its own; the folder of its run."""
    command = [
        "-m", "ftrace.cli", "fit", f"--config={name}", *SMALL[name], *arguments, f"--trainer.max_steps={steps}",
        "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = warm_python.run(*command, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "runs" / name / "version_0"


def stand_in(kind: str, texts: list[str], folder: Path) -> Path:
    """A tiny model of a hub model's kind and form, with a tokenizer, as ``save_pretrained`` leaves them."""
    tokenizer = train_word_tokenizer(texts)
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer) + 12, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0, eos_token_id=1,
        pad_token_id=0,
    )  # fmt: skip
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "kind"), [("synth_t5", "t5"), ("trex_mt5", "mt5")])
def test_recipes_with_hub_models_start(name: str, kind: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "words")
    data = FtraceSynth(SYNTH, cache) if name == "synth_t5" else FtraceTrex("sample", cache)
    data.prepare_data()
    model = stand_in(kind, list(data._texts()), tmp_path / "model")
    run = start(tmp_path, name, f"--model.init_args.model_name_or_path={model}", f"--data.init_args.tokenizer={model}",
                "--data.init_args.num_workers=0", "--trainer.accelerator=cpu")  # fmt: skip
    store = ScoreStore.open(run / "online")
    store.check()
    data.setup()
    assert len(store.query_ids) == len(data.query_rows)
    assert store.manifest["optimizers"][0]["class"] == "torch.optim.Adafactor"
    asked = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    assert asked["model"]["init_args"]["model_name_or_path"] == asked["data"]["init_args"]["tokenizer"]


def test_the_medium_recipe_starts(tmp_path: Path) -> None:
    run = start(tmp_path, "synth_medium", "--trainer.accelerator=cpu")
    ScoreStore.open(run / "online").check()
    assert find_snapshots(run / "snapshots")


def test_the_recipe_of_the_real_model_does_all_it_says_with_a_small_one(tmp_path: Path) -> None:
    model = save_rumour_llama(tmp_path / "model")
    SMALL["real_demo"] = [f"--model.init_args.model_name_or_path={model}"]
    run = start(tmp_path, "real_demo", steps=15)  # an epoch
    asked = yaml.safe_load((ROOT / "configs" / "real_demo.yaml").read_text())
    for name in ("online", *asked["trace"]["baselines"]):
        ScoreStore.open(run / name).check()
    assert ScoreStore.open(run / "online").kinds == ("cosine", "learning")
    assert len(list((run / "causal" / "prompts").glob("*.safetensors"))) == asked["trace"]["causal"]["prompts"]
    assert list((run / "causal" / "joined").glob("*.png"))
    assert {path.name for path in (run / "snapshots").iterdir()} == {"step-00000000", "step-00000015"}
    assert GradientIndex(run / "index").num_rows >= len(RumourCorpus().training_rows())
