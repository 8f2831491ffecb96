"""A run that whitens keeps projected query gradients only, and goes on from them as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore
from helpers import replay
from helpers.replay import OPTIMIZERS, trainer
from helpers.replay_runs import EXAMPLES, queries

KINDS = ("dot", "whitened", "learning")


def train(folder: Path, resume: Path | None = None, max_steps: int = 12, **online: Any) -> OnlineTracIn:
    given = {"scores": KINDS, "projection_side": 2, "refresh_every_n_steps": 3, **online}
    callback = OnlineTracIn(queries(), folder / "online", **given)
    checkpoints = ModelCheckpoint(folder / "checkpoints", every_n_train_steps=4, save_top_k=-1)
    made = trainer(
        folder, callbacks=[callback, checkpoints], max_epochs=3, max_steps=max_steps, enable_checkpointing=True
    )
    made.fit(replay.Net(OPTIMIZERS["adamw"]), DataLoader(EXAMPLES, batch_size=2), ckpt_path=resume)  # type: ignore[arg-type]
    return callback


@pytest.mark.parametrize("integration", ["left", "trapezoid"])
def test_a_resumed_run_has_the_scores_and_the_ledger_of_one_that_was_not_stopped(
    integration: Any, tmp_path: Path
) -> None:
    train(tmp_path / "whole", integration=integration)
    train(tmp_path / "parts", max_steps=8, integration=integration)
    (checkpoint,) = (tmp_path / "parts" / "checkpoints").glob("*step=4*.ckpt")
    train(tmp_path / "parts", checkpoint, integration=integration)
    whole, parts = (ScoreStore.open(tmp_path / name / "online") for name in ("whole", "parts"))
    for kind in KINDS:
        np.testing.assert_allclose(parts.matrix(kind), whole.matrix(kind), rtol=1e-9, atol=1e-14)
    assert whole.ledger is not None
    assert parts.ledger is not None
    for name in ("loss", "predicted"):
        np.testing.assert_allclose(parts.ledger[name], whole.ledger[name], rtol=1e-8)
