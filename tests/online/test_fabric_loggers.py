"""What a traced Fabric logs: the ledger's means, and nothing of rehearsals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import Logger
from torch import Tensor
from torch.utils.data import default_collate

from ftrace.online import trace
from helpers import llama_loops
from helpers.llama_loops import BATCHES, Llama, losses


class Kept(Logger):
    """Keeps what is logged."""

    name = "kept"
    version = 0

    def __init__(self) -> None:
        self.logged: list[tuple[set[str], int | None]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.logged.append((set(metrics), step))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


class Logs(Llama):
    """Logs in its training step, which Lightning passes on to Fabric."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = losses(self, batch).mean()
        self.log("train/loss", loss)
        return loss


@pytest.mark.parametrize("traces", [True, False])
def test_each_step_logs_once(traces: bool, tmp_path: Path) -> None:
    logger = Kept()
    fabric = Fabric(accelerator="cpu", devices=1, loggers=logger)
    net = Logs()
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.01))
    run = trace(
        model, optimizer, lambda model, batch: model.training_step(batch, 0), fabric=fabric, query_losses=losses,
        queries=llama_loops.queries(), output_dir=tmp_path / "s", refresh_every_n_steps=1,
    )  # fmt: skip
    if traces:
        run.__enter__()
    for number in range(60):
        batch = default_collate(BATCHES[number % len(BATCHES)])
        run.backward(run.loss(batch)) if traces else fabric.backward(model.training_step(batch, 0))
        optimizer.step()
        optimizer.zero_grad()
    if traces:
        run.__exit__(None, None, None)
    of_user = [names for names, _ in logger.logged if names == {"train/loss"}]
    of_ledger = [(names, step) for names, step in logger.logged if names != {"train/loss"}]
    assert len(of_user) == 60
    assert not {"log", "log_dict", "print"} & vars(fabric).keys()
    if traces:
        assert len(of_ledger) == 1  # of sixty refreshes, as often as Lightning's Trainer logs
        assert {"ledger/actual", "ledger/predicted"} <= of_ledger[0][0]
    else:
        assert not of_ledger
