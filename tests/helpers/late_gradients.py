"""A model whose first gradients come late, and its scores by plain autograd."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

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
