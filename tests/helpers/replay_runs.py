"""Training runs of the replay's net with OnlineTracIn, held against the replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore
from helpers import replay
from helpers.replay import OPTIMIZERS, trainer

ASKED = replay.rows(3, "query_id", seed=1)
EXAMPLES = replay.rows(8, "example_id")


def queries(rows: list[replay.Row] = ASKED) -> DataLoader:
    return DataLoader(rows, batch_size=2)  # type: ignore[arg-type]


def fit(
    tmp_path: Path, module: pl.LightningModule, loader: Any = None, online: Any = (), **settings: Any
) -> ScoreStore:
    given = {"scores": ("dot", "update", "cosine"), **dict(online)}
    callback = OnlineTracIn(
        given.pop("queries", queries()), tmp_path / "online", **{"refresh_every_n_steps": 1, **given}
    )
    more = settings.pop("callbacks", [])
    loader = DataLoader(EXAMPLES, batch_size=2) if loader is None else loader  # type: ignore[arg-type]
    trainer(tmp_path, callbacks=[*more, callback], **settings).fit(module, loader)
    return ScoreStore.open(tmp_path / "online")


def hold(
    store: ScoreStore, module: replay.Net, windows: list[list[list[replay.Row]]], tolerance: float = 1e-8,
    *, clip: float | None = None, accumulate: int = 1,
) -> None:  # fmt: skip
    """Against the replay of these windows of batches; ``module`` is as it was before training."""
    steps = replay.train(module, windows, ASKED, clip=clip, accumulate=accumulate)
    for kind in store.kinds:
        expected = replay.scores(kind, module, steps, ASKED)
        matrix = np.stack([expected[int(example)].numpy() for example in store.example_ids])
        assert np.abs(store.matrix(kind) - matrix).max() < tolerance * np.abs(matrix).max(), kind
    assert store.manifest["self_check"] == {"failures": []}
    assert store.manifest["ledger"]["balanced"] is True


def batches(size: int = 2) -> list[list[replay.Row]]:
    return [EXAMPLES[i : i + size] for i in range(0, len(EXAMPLES), size)]


class Unfreeze(pl.Callback):
    """As BaseFinetuning does: frozen in the first epoch, and in the second given to the optimizer."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            pl_module.table.requires_grad_(True)
            trainer.optimizers[0].add_param_group({"params": [pl_module.table.weight], "lr": 0.03})


class Frozen(replay.Net):
    def __init__(self) -> None:
        super().__init__(OPTIMIZERS["adamw"])
        self.table.requires_grad_(False)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.net.parameters(), lr=0.01)


class AddQueries(pl.Callback):
    def __init__(self, rows: list[replay.Row]) -> None:
        self.rows = rows

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            online = next(one for one in trainer.callbacks if isinstance(one, OnlineTracIn))
            online.add_queries(DataLoader(self.rows, batch_size=2))
