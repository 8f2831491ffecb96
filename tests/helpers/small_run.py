"""A small finished run in float64: FTRACE-SYNTH, a tiny model, and real snapshots of its training."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from torch import Tensor

from ftrace.attribution import Task
from ftrace.callbacks import CheckpointSnapshots
from ftrace.data import FtraceSynth, SynthSettings
from ftrace.models import FactLM, find_snapshots, load_snapshot
from helpers import oracle

SYNTH = SynthSettings(num_entities=8, num_relations=3, num_facts=8, num_test_utterances=2, num_facts_per_utterance=1)
CONFIGS = {
    "encoder-decoder": {
        "model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.1,
    },
    "decoder-only": {"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 32},
}  # fmt: skip
STEPS = [1, 2, 4]


@dataclass
class SmallRun:
    """What tests need of a run."""

    data: FtraceSynth
    settings: dict[str, Any]
    snapshots: list[Path]

    def load_model(self, folder: Path) -> FactLM:
        model = FactLM(**self.settings)
        model.build(self.data.tokenizer)
        model.double()
        load_snapshot(model, folder)
        return model.eval()

    def task(self, output_dir: Path, **changes: Any) -> Task:
        settings: dict[str, Any] = {
            "accelerator": "cpu", "snapshots": self.snapshots, "load_model": self.load_model, "batch_size": 16,
        }  # fmt: skip
        return Task(self.data, output_dir, **{**settings, **changes})

    def examples(self, count: int) -> list[dict[str, Tensor]]:
        """Batches of one of the first examples each."""
        collate = self.data.example_dataloader().collate_fn
        return [collate([self.data.train_rows[index]]) for index in range(count)]

    def queries(self) -> list[dict[str, Tensor]]:
        """Batches of one query each."""
        collate = self.data.query_dataloader().collate_fn
        return [collate([row]) for row in self.data.query_rows]


def make(architecture: str, folder: Path, optimizer: str = "adamw", answers: str = "any") -> SmallRun:
    """Train for a few steps and keep snapshots."""
    data = FtraceSynth(SYNTH, str(folder / "cache"), architecture, batch_size=16, query_batch_size=3)
    settings = {
        "config": CONFIGS[architecture], "answers": answers, "embedding_std": 0.5, "optimizer": optimizer,
        "learning_rate": 0.01,
    }  # fmt: skip
    torch.manual_seed(0)
    trainer = pl.Trainer(
        max_steps=6, accelerator="cpu", precision="64-true", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[CheckpointSnapshots(folder / "snapshots", steps=STEPS)],
    )  # fmt: skip
    trainer.fit(FactLM(**settings), datamodule=data)
    return SmallRun(data, settings, find_snapshots(folder / "snapshots"))


def gradient_rows(model: FactLM, batches: list[dict[str, Tensor]], **options: Any) -> list[dict[str, Tensor]]:
    """Each row's gradient by plain autograd, one row at a time."""
    return [
        one for batch in batches for one in oracle.gradients(model, lambda b=batch: model.example_losses(b, **options))
    ]


def matrices(rows: list[dict[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """For each parameter, ``[rows, elements]``."""
    for name in rows[0]:
        yield name, torch.stack([row[name].flatten() for row in rows])


def write_run_folder(run: SmallRun, folder: Path) -> Path:
    """The run as train.py leaves it, for commands."""
    data = {
        "synth": vars(SYNTH), "data_dir": str(run.data.data_path.parent), "architecture": run.data.architecture,
        "batch_size": 16, "query_batch_size": 3,
    }  # fmt: skip
    config = {
        "model": {"class_path": "ftrace.models.FactLM", "init_args": run.settings},
        "data": {"class_path": "ftrace.data.FtraceSynth", "init_args": data},
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copytree(run.snapshots[0].parent, folder / "snapshots", dirs_exist_ok=True)
    return folder
