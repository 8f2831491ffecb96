"""The folder of a finished run, made by hand in a second or two: data, config, two snapshots and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from ftrace.data import FtraceSynth, SynthSettings
from ftrace.files.digests import facts_of_files
from ftrace.files.manifests import write_json, write_manifest
from ftrace.files.snapshot_files import FORM, MANIFEST, WEIGHTS
from ftrace.models import FactLM
from ftrace.runs import Run
from ftrace.scores import ScoreStore

SYNTH = {
    "num_entities": 12, "num_relations": 2, "num_facts": 8, "num_test_utterances": 4, "num_facts_per_utterance": 1,
    "collisions": "forbid",
}  # fmt: skip
MODEL: dict[str, Any] = {
    "config": {
        "model_type": "t5", "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0,
    },
    "embedding_std": 0.3,
}  # fmt: skip
SNAPSHOTS = ("step-00000000", "step-00000100")


def make_run(folder: Path, data_dir: Path, learned: list[int] | None = None) -> Path:
    """A run whose model was not trained; which queries it has learned is given, and not asked."""
    config = {
        "data": {
            "class_path": "ftrace.data.FtraceSynth", "init_args": {"synth": dict(SYNTH), "data_dir": str(data_dir)},
        },
        "model": {"class_path": "ftrace.models.FactLM", "init_args": MODEL},
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for name in SNAPSHOTS:
        (folder / "snapshots" / name).mkdir(parents=True)
        (folder / "snapshots" / name / WEIGHTS).touch()
        note_snapshot(folder / "snapshots" / name, {})
    if learned is not None:
        run = Run(folder)
        found = {
            "rule": "paper", "query_ids": learned, "asked": 8, "right_at_last": len(learned) + 1, "known_at_first": 1,
            "snapshots": SNAPSHOTS, "key": run.learned_key(run.snapshots),
        }  # fmt: skip
        write_json(folder / "learned_queries.json", {"paper": found})
    return folder


def data_of(data_dir: Path) -> FtraceSynth:
    """The data of every run that is made here."""
    data = FtraceSynth(SynthSettings(**SYNTH), data_dir=str(data_dir))
    data.prepare_data()
    data.setup()
    return data


def train(run: Path, data: FtraceSynth, steps: int = 100) -> FactLM:
    """Train on the queries themselves, and save both snapshots."""
    torch.manual_seed(0)
    model = FactLM(**MODEL)
    model.build(data.tokenizer)
    save(model, run / "snapshots" / SNAPSHOTS[0])
    batch = next(iter(data.query_dataloader()))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model.example_losses(batch, end_of_sequence=True).mean().backward()
        optimizer.step()
    save(model, run / "snapshots" / SNAPSHOTS[1])
    return model.eval()


def save(model: FactLM, folder: Path) -> None:
    first: dict[int, str] = {}
    tied, weights = {}, {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in first:
            tied[name] = first[tensor.data_ptr()]
        else:
            first[tensor.data_ptr()] = name
            weights[name] = tensor.clone()
    save_file(weights, folder / WEIGHTS)
    note_snapshot(folder, tied)


def note_snapshot(folder: Path, tied: dict[str, str]) -> None:
    """Write the manifest of a snapshot whose files are there."""
    facts = {"step": int(folder.name.removeprefix("step-")), "epoch": 0, "tied": tied, "optimizers": []}
    write_manifest(folder / MANIFEST, FORM, {**facts, "files": facts_of_files(folder, [WEIGHTS])})


def write_scores(
    folder: Path, data: FtraceSynth, noise: dict[str, float], seed: int = 0, ids: np.ndarray | None = None
) -> ScoreStore:
    """Scores that are 1 for ground-truth proponents and else 0, with noise of a kind's own size."""
    generator = np.random.default_rng(seed)
    truth = np.zeros((len(data.train_rows), len(data.query_rows)))
    for query, proponents in data.proponents.items():
        truth[proponents, query] = 1
    ids = np.arange(len(truth)) if ids is None else ids
    scores = {kind: (truth + generator.normal(0, size, truth.shape))[ids] for kind, size in noise.items()}
    return ScoreStore.write(folder, ids, np.arange(truth.shape[1]), scores)
