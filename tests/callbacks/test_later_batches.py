"""What shows in later batches only: layers that get their first gradient, or are used in another way."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore

BATCH, PLACES, WIDTH, BATCHES, RATE = 4, 4, 6, 8, 0.1


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


def replayed(
    module: Prompted, examples: list[dict[str, Tensor]], queries: dict[str, Tensor], accumulated: int
) -> Tensor:
    """``dot`` scores by plain autograd, one example at a time."""
    parameters = list(module.parameters())

    def gradients(losses: Tensor) -> Tensor:
        rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
        return torch.stack([torch.cat([grad.flatten() for grad in row]) for row in rows])

    scores = []
    for first in range(0, len(examples), accumulated):
        of_step = examples[first : first + accumulated]
        held = torch.cat([gradients(module.example_losses(batch)) for batch in of_step]) / (BATCH * accumulated)
        scores.append(RATE * held @ gradients(module.example_losses(queries)).T)
        flat = nn.utils.parameters_to_vector(parameters).detach() - RATE * held.sum(0)
        nn.utils.vector_to_parameters(flat, parameters)
    return torch.cat(scores)


def hold(module: Prompted, examples: list[dict[str, Tensor]], folder: Path, accumulated: int = 1) -> None:
    """Hold the scores against the replay."""
    [queries] = batches(1, "query_id", 2)
    expected = replayed(copy.deepcopy(module), examples, queries, accumulated)
    online = OnlineTracIn(DataLoader([queries], batch_size=None), folder)
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
