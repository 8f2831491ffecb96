"""Rehearsals in the middle of a step whose loss is scaled, since layers run that have not run before."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from ftrace.scores import ScoreStore
from helpers import replay
from helpers.replay import OPTIMIZERS
from helpers.replay_runs import fit


class RunsMoreLater(replay.Net):
    """Looks its table up once more from the second batch on."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        losses = self.example_losses(batch)
        return (losses + self.table(batch["word"]).square().sum(1) if batch_idx else losses).mean()


def trained(folder: Path, module: RunsMoreLater, scale: float) -> ScoreStore:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
    return fit(folder, copy.deepcopy(module), online={"scores": ("dot",)}, precision=None, plugins=[plugin])


def test_scores_are_those_without_a_scale(tmp_path: Path) -> None:
    module = RunsMoreLater(OPTIMIZERS["sgd"]).float()
    plain, scaled = (trained(tmp_path / f"{scale}", module, scale).matrix("dot") for scale in (1.0, 2.0))
    np.testing.assert_allclose(scaled, plain, atol=1e-3 * np.abs(plain).max())
