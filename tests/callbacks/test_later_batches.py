"""What shows in later batches only: layers that get their first gradient, or are used in another way."""

from __future__ import annotations

import copy
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore
from helpers.late_gradients import BATCH, BATCHES, Prompted, batches, replayed


class Varied(Prompted):
    """Uses its prompts in another way in some batches."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.normal_(self.head.weight)

    def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
        if "turned" not in batch:
            return super().example_losses(batch)
        prompts = self.encoder(self.prompts(torch.arange(BATCH)))
        found = self.head(self.body(batch["x"] * prompts.mean(0)) + prompts.cos())
        return (found.sin() - batch["y"][:, None, None]).square().flatten(1).sum(1)


def hold(module: Prompted, examples: list[dict[str, Tensor]], folder: Path, accumulated: int = 1) -> None:
    """Hold the scores against the replay."""
    [queries] = batches(1, "query_id", 2)
    expected = replayed(copy.deepcopy(module), examples, queries, accumulated)
    online = OnlineTracIn(DataLoader([queries], batch_size=None), folder, refresh_every_n_steps=1)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=accumulated, callbacks=[online],
    )  # fmt: skip
    trainer.fit(module, DataLoader(examples, batch_size=None))
    store = ScoreStore.open(folder)
    found = store.matrix("dot")[np.argsort(store.example_ids)][:, np.argsort(store.query_ids)]
    np.testing.assert_allclose(found, expected, atol=1e-6 * expected.abs().max())


def test_a_head_that_begins_at_zero_and_gradients_that_are_accumulated(tmp_path: Path) -> None:
    """The first optimizer step comes after more batches than are rehearsed for silent layers."""
    hold(Prompted(), batches(BATCHES, "example_id", 1), tmp_path, accumulated=5)


def test_what_is_used_in_another_way_is_looked_at_in_that_batch(tmp_path: Path) -> None:
    examples = batches(BATCHES, "example_id", 1)
    for index in (2, 5, 6):
        examples[index]["turned"] = torch.ones(())
    hold(Varied(), examples, tmp_path)
