"""Training runs by one and several processes; runs in a process of its own: python several_processes.py CASES.json.

A process that has used threads can't fork others, so the tests start this script once, with all their cases.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import conftest  # noqa: F401
import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from ftrace.callbacks import GradientIndexWriter, OnlineTracIn, Whitening
from helpers import replay
from helpers.replay import OPTIMIZERS, trainer

torch.set_num_threads(1)
EXAMPLES = 11

Case = dict[str, Any]


class Sharded(replay.Net):
    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        for part in (self.table, self.net):  # not itself: Lightning calls training_step, not forward
            fully_shard(part, mesh=self.device_mesh["data_parallel"])


class Manual(replay.Net):
    """The same steps, by hand."""

    automatic_optimization = False

    def __init__(self, make_optimizer: Any) -> None:
        super().__init__(make_optimizer)
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.clip_gradients(optimizer, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        optimizer.step()
        schedule.step()

    clip: float | None = None


class Branches(replay.Net):
    """Every second batch of process 1 leaves the table out, and one loss of process 1 is no number."""

    def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
        skips = self.training and self.global_rank == 1
        hidden = batch["x"] + (0 if skips and self.global_step % 2 else self.table(batch["word"]))
        losses = self.net(hidden).square().mean(1)
        return losses * float("nan") if skips and self.global_step == self.nan_at else losses

    nan_at = -1

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        if any(not p.grad.isfinite().all() for p in self.parameters() if p.grad is not None):
            for p in self.parameters():  # as people do against divergence
                p.grad = None


class Nans(Branches):
    nan_at = 2


class Answers(replay.Net):
    """Process 0 answers the first query right from the first, and the second from step 2 on; others think otherwise."""

    def learned(self, batch: dict[str, Tensor]) -> Tensor:
        ids, is_first = batch["query_id"], self.global_rank == 0
        return is_first & ((ids == 1) | ((ids == 8) & (self.global_step >= 2)))


MODULES = {
    "answers": Answers,
    "branches": Branches,
    "nans": Nans,
    "plain": replay.Net,
    "dropout": replay.Dropout,
    "sharded": Sharded,
    "manual": Manual,
}


class Uneven(pl.LightningDataModule):
    """Process r sees rows of its own, three batches of r + 1 of them."""

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        rank = self.trainer.global_rank
        rows = replay.rows(40, "example_id")
        first, size = sum(3 * (r + 1) for r in range(rank)), rank + 1
        batches = [default_collate(rows[first + i * size : first + (i + 1) * size]) for i in range(3)]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


class Sampled(pl.LightningDataModule):
    """Eleven rows in batches of two, dealt out by Lightning's sampler, which pads."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(replay.rows(EXAMPLES, "example_id"), batch_size=2, shuffle=True)  # type: ignore[arg-type]


class Record(pl.Callback):
    """Which examples each step saw, and what came of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[list[int]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.seen.append(batch["example_id"].tolist())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (self.folder / f"seen-{trainer.global_rank}.json").write_text(json.dumps(self.seen))
        weights = {n: getattr(p, "full_tensor", lambda p=p: p)().detach() for n, p in pl_module.named_parameters()}
        torch.save({"weights": weights, "random": torch.get_rng_state()}, self.folder / f"end-{trainer.global_rank}.pt")


class Stop(pl.Callback):
    """Kill -9 in the middle of training."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), 9)


class Describe:
    """Texts that say in which call they were made, so that they tell whether they were made again."""

    calls = 0

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, list[str]]:
        self.calls += 1
        ids = batch["query_id" if "query_id" in batch else "example_id"].tolist()
        return {"text": [f"{i}, call {self.calls}" for i in ids], "answer": list(map(str, ids))}


def queries() -> DataLoader:
    return DataLoader(replay.rows(3, "query_id", seed=1), batch_size=2)  # type: ignore[arg-type]


def run(case: Case) -> None:
    folder = Path(case["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(5, verbose=False)
    module = MODULES[case.get("module", "plain")](OPTIMIZERS[case["optimizer"]])
    precision = case.get("precision", "64-true")
    if precision != "64-true":
        module.float()
    callbacks: list[Any] = [Record(folder)]
    if case.get("online") is not None:
        settings = dict(case["online"])
        settings["whitening"] = Whitening(**settings.get("whitening", {}))
        describe = Describe() if case.get("describe") else None
        callbacks.append(
            OnlineTracIn(queries(), folder / "online", describe=describe, **{"refresh_every_n_steps": 1, **settings})
        )
    if case.get("index") is not None:
        callbacks.append(GradientIndexWriter(folder / "index", **case["index"], describe=Describe()))
    if "stop" in case:
        callbacks.append(Stop(case["stop"]))
    if "save_every" in case:
        callbacks.append(
            pl.callbacks.ModelCheckpoint(folder / "checkpoints", every_n_epochs=1, save_top_k=-1, filename="{epoch}")
        )
    unused = "_find_unused_parameters_true" if case.get("module") in ("branches", "nans") else ""
    strategy: Any = f"ddp_fork{unused}" if case["processes"] > 1 else "auto"
    if case.get("module") == "sharded":
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    clip = case.get("clip")
    if isinstance(module, Manual):
        module.clip, clip = clip, None
    uneven = case.get("data", "uneven") == "uneven"
    trainer(
        folder, callbacks=callbacks, devices=case["processes"], strategy=strategy, precision=precision,
        gradient_clip_val=clip, accumulate_grad_batches=case.get("accumulate", 1), max_epochs=case.get("epochs", 2),
        use_distributed_sampler=not uneven, enable_checkpointing="save_every" in case,
    ).fit(module, Uneven() if uneven else Sampled(), ckpt_path=case.get("resume"))  # fmt: skip


if __name__ == "__main__":
    for one in json.loads(Path(sys.argv[1]).read_text()):
        run(one)
