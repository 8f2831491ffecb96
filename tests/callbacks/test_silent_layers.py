"""Layers that neither inputs nor gradients reach in the first batches: looked at when that may have changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from ftrace.callbacks import OnlineTracIn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftrace.scores import ScoreStore

BATCH, PLACES, WIDTH, BATCHES, ACCUMULATED, RATE = 4, 4, 6, 8, 5, 0.1


class Prompted(pl.LightningModule):
    """Prompts, as many as examples, that go through a layer; and a head that begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.prompts, self.encoder = nn.Embedding(BATCH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        nn.init.zeros_(self.head.weight)
        self.double()

    def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
        prompts = self.encoder(self.prompts(torch.arange(BATCH))).tanh()
        rows = torch.cat([prompts.expand(len(batch["x"]), -1, -1), self.body(batch["x"])], 1)
        found = self.head((rows @ rows.transpose(1, 2)).softmax(-1) @ rows)
        return (found.sin() - batch["y"][:, None, None]).square().flatten(1).sum(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.example_losses(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), RATE)


def batches(count: int, key: str, seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "x": torch.randn(BATCH, PLACES, WIDTH, generator=generator, dtype=torch.float64),
            "y": torch.randn(BATCH, generator=generator, dtype=torch.float64),
            key: torch.arange(BATCH) + BATCH * index,
        }
        for index in range(count)
    ]


def replayed(module: Prompted, examples: list[dict[str, Tensor]], queries: dict[str, Tensor]) -> Tensor:
    """``dot`` scores by plain autograd, one example at a time."""
    parameters = list(module.parameters())

    def gradients(losses: Tensor) -> Tensor:
        rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
        return torch.stack([torch.cat([grad.flatten() for grad in row]) for row in rows])

    scores = []
    for first in range(0, len(examples), ACCUMULATED):
        of_step = examples[first : first + ACCUMULATED]
        held = torch.cat([gradients(module.example_losses(batch)) for batch in of_step]) / (BATCH * ACCUMULATED)
        scores.append(RATE * held @ gradients(module.example_losses(queries)).T)
        flat = nn.utils.parameters_to_vector(parameters).detach() - RATE * held.sum(0)
        nn.utils.vector_to_parameters(flat, parameters)
    return torch.cat(scores)


def test_a_head_that_begins_at_zero_and_gradients_that_are_accumulated(tmp_path: Path) -> None:
    """The first optimizer step comes after more batches than are rehearsed for silent layers."""
    module, examples = Prompted(), batches(BATCHES, "example_id", 1)
    [queries] = batches(1, "query_id", 2)
    expected = replayed(copy.deepcopy(module), examples, queries)
    online = OnlineTracIn(DataLoader([queries], batch_size=None), tmp_path)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=ACCUMULATED, callbacks=[online],
    )  # fmt: skip
    trainer.fit(module, DataLoader(examples, batch_size=None))
    store = ScoreStore.open(tmp_path)
    found = store.matrix("dot")[np.argsort(store.example_ids)][:, np.argsort(store.query_ids)]
    np.testing.assert_allclose(found, expected, atol=1e-6 * expected.abs().max())
