"""A net that has as many positions as there are examples, so that one may be taken for the other; and its batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from helpers.own_parts import WIDTH, batches, gaussian, mlp


class Positions(nn.Module):
    """As many positions as examples: ``[T, WIDTH]`` is added to ``[B, T, WIDTH]``."""

    def __init__(self, length: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.rest, self.length = nn.Embedding(length, WIDTH), mlp(), length

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(torch.tanh(x + self.table(torch.arange(self.length))).mean(1))


def square(key: str = "example_id", count: int = 3, size: int = 4) -> list[Any]:
    return [{**batch, "x": gaussian(size, 4, WIDTH, seed=i)} for i, batch in enumerate(batches(count, size, key))]
