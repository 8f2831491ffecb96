"""A loss scaler that begins far too large: training skips steps until it fits, and so must tracing."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore

TOKENS, EXAMPLES, BATCH = 6, 60, 4


class Net(pl.LightningModule):
    """A small model of tokens, with positions that all examples share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.places = nn.Embedding(13, 8), nn.Embedding(TOKENS, 8)
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 13)

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        ids = batch["ids"]
        seen = self.table(ids[:, :-1]) + self.places(torch.arange(TOKENS - 1))
        logits = self.head(self.hidden(seen).tanh())
        return nn.functional.cross_entropy(logits.transpose(1, 2).float(), ids[:, 1:], reduction="none").sum(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.losses(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def rows(count: int, key: str, seed: int) -> DataLoader[Any]:
    ids = torch.randint(0, 13, (count, TOKENS), generator=torch.Generator().manual_seed(seed))
    return DataLoader([{"ids": row, key: place} for place, row in enumerate(ids)], batch_size=BATCH)  # type: ignore[arg-type]


def trace(folder: Path, scale: float | None, traced: bool = True) -> tuple[ScoreStore | None, dict[str, Tensor]]:
    """Train in float32, or in float16 with a scaler that begins with this scale."""
    plugins = []
    if scale is not None:
        plugins.append(MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale)))
    online = OnlineTracIn(
        rows(5, "query_id", 1), folder, query_losses=lambda module, batch: module.losses(batch), scores=("dot",)
    )
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", plugins=plugins, callbacks=[online] if traced else [], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    net = Net()
    trainer.fit(net, rows(EXAMPLES, "example_id", 0))
    return ScoreStore.open(folder) if traced else None, net.state_dict()


@pytest.mark.filterwarnings("ignore")
def test_steps_that_overflow_are_skipped_and_the_others_scored(tmp_path: Path) -> None:
    store, weights = trace(tmp_path / "high", 2.0**20)
    _, plain = trace(tmp_path / "plain", 2.0**20, traced=False)
    assert store is not None
    assert all(torch.equal(weights[name], plain[name]) for name in plain)
    skipped = store.manifest["steps_skipped"]
    assert skipped == list(range(len(skipped)))
    assert 0 < len(skipped) < EXAMPLES // BATCH - 2
    assert sorted(store.example_ids) == list(range(len(skipped) * BATCH, EXAMPLES))
    low, _ = trace(tmp_path / "low", None)
    assert low is not None  # in float32 all steps are taken, so weights differ a little
    both = [found.matrix("dot")[np.argsort(found.example_ids)][-len(store.example_ids) :] for found in (store, low)]
    assert np.corrcoef(*(scores.ravel() for scores in both))[0, 1] > 0.98
