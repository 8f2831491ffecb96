"""Preconditioners read off a snapshot equal those of the live optimizer at the same step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftrace.attribution import snapshot_preconditioners
from ftrace.callbacks import CheckpointSnapshots
from ftrace.gradients import preconditioners_from_optimizer

OPTIMIZERS: dict[str, Any] = {
    "adamw of two groups": lambda p: torch.optim.AdamW([{"params": p[:1], "eps": 0.1}, {"params": p[1:]}], lr=0.01),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}


class Net(pl.LightningModule):
    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
        self.optimizer = optimizer

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(list(self.parameters()))


def _fit(module: Net, folder: Path) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[CheckpointSnapshots(folder / "s", steps=[4])],
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.randn(16, 4), batch_size=4))
    return trainer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_snapshots_preconditioners_are_the_live_ones(name: str, tmp_path: Path) -> None:
    module = Net(OPTIMIZERS[name])
    trainer = _fit(module, tmp_path)
    live = preconditioners_from_optimizer(trainer.optimizers[0], module.named_parameters())
    found = snapshot_preconditioners(next((tmp_path / "s").glob("step-*")), module)
    assert found.keys() == live.keys() == dict(module.named_parameters()).keys()
    for parameter, expected in live.items():
        assert type(found[parameter]) is type(expected)
        torch.testing.assert_close(found[parameter].dense(), expected.dense(), rtol=0, atol=0)


def test_where_no_gradient_has_come_it_is_zero(tmp_path: Path) -> None:
    module = Net(OPTIMIZERS["adam amsgrad"])
    module.net[0].register_forward_pre_hook(lambda layer, args: (args[0] * torch.tensor([1.0, 0.0, 1.0, 1.0]),))
    trainer = _fit(module, tmp_path)
    live = preconditioners_from_optimizer(trainer.optimizers[0], module.named_parameters())["net.0.weight"].dense()
    found = snapshot_preconditioners(next((tmp_path / "s").glob("step-*")), module)["net.0.weight"].dense()
    assert (live[:, 1] > 1e7).all()
    assert not found[:, 1].any()
    kept = [0, 2, 3]
    torch.testing.assert_close(found[:, kept], live[:, kept], rtol=0, atol=0)


def test_a_snapshot_without_second_moments_says_so(tmp_path: Path) -> None:
    module = Net(lambda p: torch.optim.SGD(p, lr=0.01))
    _fit(module, tmp_path)
    with pytest.raises(ValueError, match="has no second moments: before the first step"):
        snapshot_preconditioners(next((tmp_path / "s").glob("step-*")), module)
