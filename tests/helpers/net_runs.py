"""Training runs of a tiny regression whose net is given, and what plain autograd says of them."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore
from helpers import oracle
from helpers.language_runs import fit


class Net(pl.LightningModule):
    """A tiny regression whose net is given."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.double()

    def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(batch["x"]).square().flatten(1).sum(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.example_losses(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def net_rows(count: int, key: str) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(count)
    return [{"x": torch.randn(3, 4, generator=generator).double(), key: i} for i in range(count)]


def run_net(net: nn.Module, tmp_path: Path, **arguments: Any) -> ScoreStore:
    asked = DataLoader(net_rows(3, "query_id"), batch_size=3)
    shutil.rmtree(tmp_path / "online", ignore_errors=True)
    callback = OnlineTracIn(asked, tmp_path / "online", **{"refresh_every_n_steps": 1, **arguments})
    fit(Net(net), DataLoader(net_rows(6, "example_id"), batch_size=3), tmp_path, [callback])
    return ScoreStore.open(tmp_path / "online")


def hold_net(net: nn.Module, tmp_path: Path, **arguments: Any) -> None:
    """Against a replay by plain autograd, one example at a time."""
    module = Net(copy.deepcopy(net))
    store = run_net(copy.deepcopy(net), tmp_path, **arguments)
    asked = default_collate(net_rows(3, "query_id"))
    expected = torch.zeros(6, 3, dtype=torch.float64)
    for start in (0, 3) * (store.manifest["steps"] // 2):
        batch = default_collate(net_rows(6, "example_id")[start : start + 3])
        queries_QP = oracle.matrix(oracle.gradients(module, lambda: module.example_losses(asked)))
        rows = oracle.gradients(module, lambda b=batch: module.example_losses(b) / 3)
        expected[start : start + 3] += 0.1 * oracle.matrix(rows) @ queries_QP.T
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter -= 0.1 * sum(row[name] for row in rows)
    np.testing.assert_allclose(store.matrix("dot"), expected.numpy(), rtol=1e-9, atol=1e-12)


class UsesWeightTwice(nn.Module):
    """Uses a layer's weight once more behind its back."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.layer.weight
