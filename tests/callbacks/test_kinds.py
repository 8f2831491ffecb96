"""Every kind of score against the replay of its definition."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import replay
import torch
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8, dampening=0.3, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01, weight_decay=0.1),
}


def trainer(tmp_path: Path, **settings: Any) -> pl.Trainer:
    defaults: dict[str, Any] = dict(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, precision="64-true",
    )  # fmt: skip
    return pl.Trainer(**{**defaults, **settings})


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("integration", "refresh"), [("left", 1), ("left", 3), ("trapezoid", 1), ("trapezoid", 3)])
@pytest.mark.parametrize("momentum", ["eventual", "exact"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_scores_equal_the_replay(
    optimizer: str, momentum: Any, integration: Any, refresh: int, accumulate: int, tmp_path: Path
) -> None:
    examples, asked = replay.rows(9, "example_id"), replay.rows(3, "query_id", seed=1)
    module = replay.Net(OPTIMIZERS[optimizer])
    by_hand = copy.deepcopy(module)
    online = OnlineTracIn(
        DataLoader(asked, batch_size=2), tmp_path / "online", scores=("dot", "update", "cosine"), momentum=momentum,
        integration=integration, refresh_every_n_steps=refresh,
    )  # fmt: skip
    trainer(tmp_path, callbacks=[online], accumulate_grad_batches=accumulate, gradient_clip_val=0.4).fit(
        module, DataLoader(examples, batch_size=2)
    )
    batches = [examples[i : i + 2] for i in range(0, 9, 2)]
    windows = [batches[i : i + accumulate] for i in range(0, 5, accumulate)] * 2
    full = [[*window] for window in windows]
    steps = replay.train(by_hand, full, asked, clip=0.4, accumulate=accumulate)
    for (name, found), expected in zip(module.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=name)
    store = ScoreStore.open(tmp_path / "online")
    for kind in ("dot", "update", "cosine"):
        expected = replay.scores(
            kind, by_hand, steps, asked, refresh=refresh, trapezoid=integration == "trapezoid",
            exact_momentum=momentum == "exact",
        )  # fmt: skip
        matrix = np.stack([expected[int(example)].numpy() for example in store.example_ids])
        np.testing.assert_allclose(
            store.matrix(kind), matrix, rtol=1e-8, atol=1e-9 * np.abs(matrix).max(), err_msg=kind
        )
    assert store.manifest["ledger"]["balanced"] is True
    assert store.manifest["ledger"]["worst_imbalance"] < 1e-9
    assert store.manifest["self_check"] == {"failures": []}
