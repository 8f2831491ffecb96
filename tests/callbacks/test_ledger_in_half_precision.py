"""The books balance in half precision, too, where steps are rounded to the dtype of the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore
from helpers.corrupted import change_contributions
from helpers.language_runs import Module, fit, queries, rows

OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda p, rate: torch.optim.AdamW(p, lr=rate, weight_decay=0.1, eps=1e-4),
    "adam": lambda p, rate: torch.optim.Adam(p, lr=rate, weight_decay=0.1, eps=1e-4),
    "fused": lambda p, rate: torch.optim.AdamW(p, lr=rate, weight_decay=0.1, eps=1e-4, fused=True),
    "sgd": lambda p, rate: torch.optim.SGD(p, lr=5 * rate, momentum=0.9, weight_decay=0.01),
}

HALF = {torch.bfloat16: 2e-3, torch.float16: 1e-4}  # and the least share that rounding has of what steps do


class Trained(Module):
    def __init__(self, dtype: torch.dtype, optimizer: str, rate: float) -> None:
        super().__init__("gpt2", dtype)
        self.make = lambda: OPTIMIZERS[optimizer](self.parameters(), rate)

    def configure_optimizers(self) -> Any:
        return self.make()


def run(tmp_path: Path, dtype: torch.dtype, optimizer: str, rate: float, **online: Any) -> ScoreStore:
    settings = {"scores": ("dot", "update"), "refresh_every_n_steps": 2, **online}
    callback = OnlineTracIn(queries("gpt2"), tmp_path / "online", **{"refresh_every_n_steps": 1, **settings})
    loader = DataLoader(rows("gpt2", 8), batch_size=4)
    fit(Trained(dtype, optimizer, rate), loader, tmp_path, [callback], precision="32-true", gradient_clip_val=0.2)
    return ScoreStore.open(tmp_path / "online")


@pytest.mark.parametrize("integration", ["left", "trapezoid"])
@pytest.mark.parametrize("rate", [1e-2, 1e-4])
@pytest.mark.parametrize(
    ("dtype", "optimizer"),
    # In float16 a fused AdamW steps with second moments that are 0 once they are stored: nobody can read them.
    [(dtype, name) for dtype in HALF for name in OPTIMIZERS if (dtype, name) != (torch.float16, "fused")],
)
def test_rounding_has_an_account(
    dtype: torch.dtype, optimizer: str, rate: float, integration: Any, tmp_path: Path
) -> None:
    store = run(tmp_path, dtype, optimizer, rate, integration=integration)
    ledger = store.ledger
    assert ledger is not None
    assert store.manifest["ledger"]["balanced"] is True
    assert store.manifest["ledger"]["worst_imbalance"] < 2e-3
    assert np.abs(ledger["rounding"]).sum() > HALF[dtype] * np.abs(ledger["predicted"]).sum()


def test_steps_that_round_to_nothing_are_said(tmp_path: Path) -> None:
    store = run(tmp_path, torch.bfloat16, "sgd", 1e-6)
    assert store.ledger is not None
    lost = store.ledger["examples"] + store.ledger["momentum"] + store.ledger["decay"]
    assert np.abs(store.ledger["predicted"]).sum() < 0.05 * np.abs(lost).sum()
    np.testing.assert_allclose(store.ledger["rounding"].sum(), -lost.sum(), rtol=0.1)


def test_weights_in_float32_have_nothing_in_it(tmp_path: Path) -> None:
    store = run(tmp_path, torch.float32, "adamw", 1e-2)
    assert store.ledger is not None
    assert not store.ledger["rounding"].any()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_wrong_contribution_is_not_taken_for_rounding(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def corrupt(part: Any) -> Any:
        return replace(part, rows=part.rows * 2.0)

    change_contributions(monkeypatch, "model.transformer.h.0.mlp.c_fc.weight", corrupt)
    store = run(tmp_path, torch.bfloat16, optimizer, 1e-2, self_check=False)
    assert store.manifest["ledger"]["worst_imbalance"] > 2e-2
