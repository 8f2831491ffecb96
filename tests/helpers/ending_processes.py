"""A user's own script by one of two processes: python ending_processes.py FOLDER PORT RANK LOOP ENDING.

LOOP is "lightning" or "plain"; ENDING what happens before the fifth step: "SIGTERM-1" is a signal to process 1 alone,
"error-0" an error in process 0.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import conftest  # noqa: F401
import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.online import trace
from helpers import replay
from helpers.replay import OPTIMIZERS, trainer

FOLDER, PORT, RANK, LOOP, ENDING = sys.argv[1:]


def end_at(step: int) -> None:
    """Do what is asked for in this process, at the fifth step."""
    what, _, rank = ENDING.partition("-")
    if step == 4 and rank == RANK:
        if what == "error":
            raise RuntimeError("an error of its own")
        os.kill(os.getpid(), getattr(signal, what))


class Net(replay.Net):
    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        end_at(self.global_step)
        return super().training_step(batch, batch_idx)


def lightning(queries: DataLoader, examples: Any) -> None:
    callbacks = [
        OnlineTracIn(queries, Path(FOLDER) / "scores"),
        pl.callbacks.ModelCheckpoint(FOLDER, filename="saved", save_on_exception=True, every_n_train_steps=1000),
    ]
    trainer(
        Path(FOLDER), callbacks=callbacks, devices=2, strategy="ddp", max_epochs=1000, enable_checkpointing=True
    ).fit(Net(OPTIMIZERS["adam"]), DataLoader(examples, batch_size=2))


def plain(queries: DataLoader, examples: Any) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    net = replay.Net(OPTIMIZERS["adam"])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)

    def losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        module = getattr(model, "module", model)
        hidden = batch["x"] + module.table(batch["word"])
        return module.net(hidden).square().mean(1)

    class Whole(torch.nn.Module):
        """The losses as a forward pass, which DistributedDataParallel wraps."""

        def __init__(self) -> None:
            super().__init__()
            self.table, self.net = net.table, net.net

        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return losses(self, batch)

    model = DistributedDataParallel(Whole().double())
    with trace(
        model, optimizer, lambda model, batch: model(batch).mean(), queries=queries,
        query_losses=lambda model, batch: losses(model, batch), output_dir=Path(FOLDER) / "scores",
        precision="64-true",
    ) as run:  # fmt: skip
        step = 0
        while True:
            for batch in DataLoader(examples[int(RANK) :: 2], batch_size=2):
                end_at(step)
                optimizer.zero_grad()
                run.backward(run.loss(batch))
                optimizer.step()
                step += 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in the background ignore
    os.environ |= {"LOCAL_RANK": RANK, "RANK": RANK, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT}
    asked = DataLoader(replay.rows(3, "query_id", seed=1), batch_size=2)  # type: ignore[arg-type]
    {"lightning": lightning, "plain": plain}[LOOP](asked, replay.rows(16, "example_id"))
