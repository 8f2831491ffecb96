"""Runs of Hugging Face's trainers, traced: other loops' scores, resuming, two processes, the user's own files."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ftrace.callbacks import OnlineTracIn
from ftrace.hf import OnlineTracInCallback
from ftrace.scores import ScoreStore
from helpers import warm_python
from helpers.hf_trainers import KINDS, Recorder, make_model, make_queries, make_trainer, model_folder, query_losses


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(tmp_path_factory.mktemp("hf"))


def traced(trainer: Any, model: str, store: Path, **settings: Any) -> OnlineTracInCallback:
    settings = {"scores": ("dot", "update", "cosine"), **settings}
    callback = OnlineTracInCallback(trainer, make_queries(model), store, query_losses, **settings)
    trainer.add_callback(callback)
    return callback


def same_weights(one: Any, other: Any) -> bool:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def assert_same_scores(one: Path, other: Path, tolerance: float) -> None:
    first, second = ScoreStore.open(one), ScoreStore.open(other)
    assert first.example_ids.tolist() == second.example_ids.tolist()
    for kind in first.kinds:
        largest = np.abs(first.matrix(kind)).max()
        assert largest > 0
        assert np.abs(first.matrix(kind) - second.matrix(kind)).max() <= tolerance * largest, kind


class Same(pl.LightningModule):
    """The same steps in Lightning."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.model = make_model(folder, torch.float64)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.0)


def test_scores_are_those_of_the_lightning_callback_on_the_same_batches(model: str, tmp_path: Path) -> None:
    trainer = make_trainer("trainer", model, tmp_path, lr_scheduler_type="constant", warmup_steps=0)
    recorder = Recorder(trainer, traced(trainer, model, tmp_path / "hf"))
    trainer.train()
    queries = DataLoader(make_queries(model), batch_size=3)  # type: ignore[arg-type]
    online = OnlineTracIn(
        queries, tmp_path / "lightning", lambda module, batch: query_losses(module.model, batch),
        scores=("dot", "update", "cosine"), shared_ids=True,
    )  # fmt: skip
    pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=0.5, precision="64-true", callbacks=[online],
    ).fit(Same(model), DataLoader([batch.inputs for batch in recorder.batches], batch_size=None))  # type: ignore[arg-type]  # fmt: skip
    assert_same_scores(tmp_path / "hf", tmp_path / "lightning", 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_followed(kind: str, model: str, tmp_path: Path) -> None:
    """Under autocast, which the trainer puts into the model's forward: weights aren't disturbed, scores agree."""
    stores = []
    for name, bf16 in (("plain", True), ("bf16", True), ("full", False)):
        trainer = make_trainer(kind, model, tmp_path / name, dtype=torch.float32, bf16=bf16)
        stores.append(trainer)
        if name != "plain":
            traced(trainer, model, tmp_path / f"{name}-scores", scores=("dot",))
        trainer.train()
    assert same_weights(stores[0], stores[1])
    low, full = (ScoreStore.open(tmp_path / f"{name}-scores") for name in ("bf16", "full"))
    assert low.manifest["precision"] == "bf16-mixed"
    assert np.corrcoef(low.matrix("dot").ravel(), full.matrix("dot").ravel())[0, 1] > 0.95


class Killed(Exception):
    """The end of a process."""


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


@pytest.mark.parametrize(
    ("kind", "accumulated"),
    [(kind, accumulated) for kind in KINDS for accumulated in (1, 2)][:-1],  # TRL's GRPO samples anew within a window
)
def test_a_killed_and_resumed_run_is_an_undisturbed_one(
    kind: str, accumulated: int, model: str, tmp_path: Path
) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": accumulated}
    whole = make_trainer(kind, model, tmp_path / "whole", **options)
    traced(whole, model, tmp_path / "whole-scores")
    whole.train()
    first = make_trainer(kind, model, tmp_path / "run", **options)
    callback = traced(first, model, tmp_path / "scores")
    first.add_callback(KillAt(3))
    with pytest.raises(Killed):
        first.train()
    assert callback.incomplete_store == tmp_path / "scores-incomplete"
    second = make_trainer(kind, model, tmp_path / "run", **options)
    traced(second, model, tmp_path / "scores")
    second.train(resume_from_checkpoint=True)
    assert same_weights(whole, second)
    assert_same_scores(tmp_path / "whole-scores", tmp_path / "scores", 1e-6)
    assert ScoreStore.open(tmp_path / "scores").manifest["complete"] is True


def test_checkpoints_differ_by_the_entry_of_the_callback_alone(model: str, tmp_path: Path) -> None:
    """And what no checkpoint needs any more is deleted."""
    options = {
        "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "eval_strategy": "steps", "eval_steps": 2,
        "logging_strategy": "steps", "logging_steps": 1,
    }  # fmt: skip
    for name in ("plain", "traced"):
        trainer = make_trainer("sft", model, tmp_path / name, evaluates=True, **options)
        if name == "traced":
            traced(trainer, model, tmp_path / "scores")
        trainer.train()
    (plain,), (other,) = ([*(tmp_path / name).glob("checkpoint-*")] for name in ("plain", "traced"))
    assert plain.name == other.name
    names = {path.name for path in plain.iterdir()}
    assert names == {path.name for path in other.iterdir()}
    for name in names - {"trainer_state.json", "training_args.bin", "README.md"}:
        if name.endswith((".safetensors", ".json")):
            assert (plain / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        one, two = (torch.load(folder / name, weights_only=False) for folder in (plain, other))
        assert _same(one, two), name
    states = [json.loads((folder / "trainer_state.json").read_text()) for folder in (plain, other)]
    assert states[1]["stateful_callbacks"].pop("OnlineTracInCallback")["attributes"]["entry"]["files"]
    for state in states:
        for line in state["log_history"]:
            for key in [key for key in line if "runtime" in key or "per_second" in key]:
                del line[key]
        del state["best_model_checkpoint"]
    assert states[0] == states[1]
    assert len([*(tmp_path / "scores-state").glob("*.pt")]) <= 2


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def test_the_best_model_is_loaded_after_the_last_scores(model: str, tmp_path: Path) -> None:
    options = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
    for name in ("last", "best"):
        trainer = make_trainer("trainer", model, tmp_path / name, evaluates=True, **(options if name == "best" else {}))
        traced(trainer, model, tmp_path / f"{name}-scores")
        trainer.train()
    assert_same_scores(tmp_path / "last-scores", tmp_path / "best-scores", 1e-9)
    ledgers = [ScoreStore.open(tmp_path / f"{name}-scores").ledger for name in ("last", "best")]
    np.testing.assert_allclose(ledgers[0]["next_loss"], ledgers[1]["next_loss"], rtol=1e-9)  # type: ignore[index]


def train(rank: int, processes: int, folder: str) -> None:
    """Train with two rows a step and two batches, on one process or divided among two."""
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    for kind in ("trainer", "sft", "dpo"):
        trainer = make_trainer(
            kind, f"{folder}/model", Path(folder, f"{kind}-{processes}"), ddp_backend="gloo" if processes > 1 else None,
            per_device_train_batch_size=2 // processes, gradient_accumulation_steps=2,
        )  # fmt: skip
        traced(trainer, f"{folder}/model", Path(folder, f"{kind}-scores-{processes}"))
        trainer.train()
    if processes > 1:
        torch.distributed.destroy_process_group()


def test_two_processes_have_the_scores_of_one(tmp_path: Path) -> None:
    model_folder(tmp_path)
    train(0, 1, str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = warm_python.run(__file__, tmp_path, env=environment, has_trained=True)
    assert done.returncode == 0, done.stderr[-2500:]
    for kind, tolerance in (("trainer", 1e-6), ("sft", 1e-3), ("dpo", 1e-3)):
        assert_same_scores(tmp_path / f"{kind}-scores-1", tmp_path / f"{kind}-scores-2", tolerance)
        assert ScoreStore.open(tmp_path / f"{kind}-scores-2").manifest["processes"] == 2


if __name__ == "__main__":  # what has used threads, as the tests have, can't fork
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(20_000 + os.getpid() % 20_000)}
    mp.start_processes(train, (2, sys.argv[1]), nprocs=2, start_method="fork")  # type: ignore[no-untyped-call]
