"""Training is what it is without a callback where examples share rows, or passes draw, normalise or are packed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from helpers.left_alone import Case, hold_as_without
from helpers.own_parts import CLASSES, WIDTH, Own, batches, mean_loss, mlp

LENGTH = 3


# What all examples share


def sequences(key: str = "example_id", count: int = 3, size: int = 4) -> list[Any]:
    generator = torch.Generator().manual_seed(5)
    return [
        {**batch, "x": torch.randn(size, LENGTH, WIDTH, generator=generator).double()}
        for batch in batches(count, size, key)
    ]


SEQUENCE_QUERIES = sequences("query_id", 1, 3)


class Shares(nn.Module):
    """A table that is looked up once for all examples, and meets them in some way."""

    def __init__(self, meet: Callable[[Tensor, Tensor], Tensor], rows: int = LENGTH, ndim: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.inner, self.head = (
            nn.Embedding(rows, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, CLASSES),
        )
        self.meet, self.rows, self.ndim = meet, rows, ndim

    def forward(self, x: Tensor) -> Tensor:
        numbers = torch.arange(self.rows)
        own = self.table(numbers if self.ndim == 1 else numbers[None])
        met = self.meet(torch.tanh(self.inner(x)), own)
        return self.head(torch.tanh(met).mean(1)) if met.ndim == 3 else met[:, :CLASSES]


def plain(h: Tensor) -> Tensor:
    return h.mean(1)


MEETINGS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "added": (lambda h, p: h + p, 1),
    "added, one row": (lambda h, p: h + p, 2),
    "repeated": (lambda h, p: torch.cat([p.repeat(len(h), 1, 1), h], 1), 1),
    "expanded": (lambda h, p: torch.cat([p.expand(len(h), -1, -1), h], 1), 2),
    "concatenated": (lambda h, p: torch.cat([torch.stack([p] * len(h)), h], 1), 1),
    "bmm": (lambda h, p: (plain(h)[:, None] @ p.transpose(1, 2))[:, 0], 2),
    "view": (lambda h, p: plain(h) @ p.view(-1, WIDTH).T, 2),
    "flatten": (lambda h, p: plain(h) @ p.flatten(0, 1).T, 2),
    "einsum": (lambda h, p: torch.einsum("bd,ncd->bc", plain(h), p), 2),
    "squeeze": (lambda h, p: plain(h) @ p.squeeze(0).T, 2),
    "index": (lambda h, p: plain(h) @ p[0].T, 2),
    "cdist": (lambda h, p: -torch.cdist(plain(h)[None], p)[0], 2),
    "mean over it": (lambda h, p: plain(h) * p.mean(0), 1),
    "sum over it": (lambda h, p: plain(h) * p.sum(1), 2),
}


def shares(name: str) -> Case:
    meet, ndim = MEETINGS[name]
    return Case(lambda: Own(mean_loss, net=Shares(meet, ndim=ndim)), sequences, SEQUENCE_QUERIES)


def penalises_rows() -> Own:
    def step(module: Any, batch: Any) -> Tensor:
        return mean_loss(module, batch) + 0.1 * module.net.table(torch.arange(2)).square().sum()

    return Own(step, net=Shares(MEETINGS["added"][0]))


# Passes that draw, keep statistics, or have odd batches


def with_dropout() -> Own:
    torch.manual_seed(0)
    return Own(mean_loss, net=nn.Sequential(mlp(), nn.Dropout(0.5), nn.Linear(CLASSES, CLASSES)))


def batch_norm_in_eval() -> Own:
    module = Own(mean_loss, net=nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), mlp()))
    module.net[1].eval()
    return module


def normalised(how: Callable[[nn.Module], nn.Module]) -> Callable[[], Own]:
    def make() -> Own:
        torch.manual_seed(0)
        return Own(mean_loss, net=nn.Sequential(how(nn.Linear(WIDTH, WIDTH).double()), mlp()))

    return make


def packed(key: str = "example_id", count: int = 3) -> list[Any]:
    """One row of several texts of varying length."""
    generator = torch.Generator().manual_seed(6)
    return [
        {
            "x": torch.randn(1, 7 + i, WIDTH, generator=generator).double(),
            "y": torch.randint(CLASSES, (1, 7 + i), generator=generator),
            key: torch.tensor([i]),
        }
        for i in range(count)
    ]


def packed_losses(module: Any, batch: Any) -> Tensor:
    return F.cross_entropy(module.net(batch["x"]).transpose(1, 2), batch["y"], reduction="none").sum(1)


CASES = {
    **{f"shared, {name}": shares(name) for name in MEETINGS},
    "penalty on looked-up rows": Case(
        penalises_rows, sequences, SEQUENCE_QUERIES, parameters=("*", "!net.table.weight")
    ),
    "dropout": Case(with_dropout),
    "dropout, accumulated and clipped": Case(
        with_dropout,
        lambda: batches(5),
        settings={"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "max_epochs": 2},
    ),
    "batch norm in eval": Case(batch_norm_in_eval),
    "spectral norm": Case(normalised(parametrizations.spectral_norm)),
    "weight norm": Case(normalised(parametrizations.weight_norm)),
    "old spectral norm": Case(normalised(nn.utils.spectral_norm), parameters=("net.1.*",)),
    "packed": Case(
        lambda: Own(lambda m, b: packed_losses(m, b).sum(), net=mlp()), packed, packed("query_id", 2), packed_losses
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_everything_is_as_without(case: Case, tmp_path: Path) -> None:
    hold_as_without(case, tmp_path)
