"""Projected ``update`` directions serve several steps where second moments hardly move; the difference is booked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.online.scoring.balances import EXACT_STEPS
from ftrace.scores import ScoreStore
from helpers import replay
from helpers.replay import OPTIMIZERS, trainer
from helpers.replay_runs import EXAMPLES, fit, queries

LOSSLESS = 8


def traced(folder: Path, tolerance: float, side: int | None = LOSSLESS, **online: Any) -> ScoreStore:
    given = {"refresh_every_n_steps": 10, "projection_side": side, "moments_tolerance": tolerance, **online}
    module = replay.Net(OPTIMIZERS["adamw"])
    return fit(folder, module, online={"scores": ("update",), **given}, max_epochs=5)


@pytest.mark.parametrize("integration", ["left", "trapezoid"])
def test_what_earlier_second_moments_change_is_small_and_has_an_account(integration: Any, tmp_path: Path) -> None:
    exact = traced(tmp_path / "exact", 0.0, integration=integration)
    tolerant = traced(tmp_path / "tolerant", 0.1, integration=integration)
    scores, expected = tolerant.matrix("update"), exact.matrix("update")
    difference = np.linalg.norm(scores - expected) / np.linalg.norm(expected)
    assert 1e-6 < difference < 0.1
    counts = tolerant.manifest["update_directions"]
    assert counts["tolerance"] == 0.1
    parameters = len(list(replay.Net(OPTIMIZERS["adamw"]).parameters()))
    assert 0 < counts["prepared"] < counts["used"] == (20 - EXACT_STEPS) * parameters
    assert exact.manifest["update_directions"] == {"tolerance": 0.0, "used": counts["used"], "prepared": counts["used"]}
    assert tolerant.ledger is not None
    assert np.nanmax(np.abs(tolerant.ledger["projection"])) > 1e-6
    assert tolerant.manifest["ledger"]["worst_imbalance"] < 1e-9


def test_exact_products_prepare_nothing(tmp_path: Path) -> None:
    assert traced(tmp_path, 0.1, None).manifest["update_directions"] is None


def test_a_resumed_run_goes_on_with_the_directions_that_it_had(tmp_path: Path) -> None:
    def train(folder: Path, resume: Path | None = None, max_steps: int = 15) -> None:
        callback = OnlineTracIn(
            queries(), folder / "online", scores=("update",), projection_side=2, refresh_every_n_steps=10,
            moments_tolerance=10.0,
        )  # fmt: skip
        checkpoints = ModelCheckpoint(folder / "checkpoints", every_n_train_steps=12, save_top_k=-1)
        made = trainer(
            folder, callbacks=[callback, checkpoints], max_epochs=-1, max_steps=max_steps, enable_checkpointing=True
        )
        made.fit(replay.Net(OPTIMIZERS["adamw"]), DataLoader(EXAMPLES, batch_size=2), ckpt_path=resume)  # type: ignore[arg-type]

    train(tmp_path / "whole")
    train(tmp_path / "parts", max_steps=13)
    (checkpoint,) = (tmp_path / "parts" / "checkpoints").glob("*.ckpt")
    train(tmp_path / "parts", checkpoint)
    whole, parts = (ScoreStore.open(tmp_path / name / "online") for name in ("whole", "parts"))
    np.testing.assert_allclose(parts.matrix("update"), whole.matrix("update"), rtol=1e-9, atol=1e-14)
    assert parts.manifest["update_directions"] == whole.manifest["update_directions"]
    assert parts.manifest["update_directions"]["prepared"] < parts.manifest["update_directions"]["used"]
