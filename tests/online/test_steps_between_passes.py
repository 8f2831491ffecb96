"""Loops that step between a forward pass and its backward pass, which autograd allows if no trained weight is in it.

With as many directions as the parameters have rows and columns, projected scores are exact, whatever balance they have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ftrace.online import trace
from ftrace.scores import ScoreStore

BATCHES = 10
GENERATOR = torch.Generator().manual_seed(0)
EXAMPLES = [{"x": torch.randn(3, generator=GENERATOR).double(), "example_id": i} for i in range(2 * BATCHES)]
ASKED = [{"x": torch.randn(3, generator=GENERATOR).double(), "query_id": i} for i in range(3)]


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["x"]).square().sum(1)


def mean_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return losses(model, batch).mean()


def train(folder: Path, *, steps: int = 1, zero_at: int = 0, **settings: Any) -> ScoreStore:
    """Train, taking steps between a batch's passes, and setting gradients to zero before its backward pass.

    Args:
        steps: Their number.
        zero_at: The first batch before which gradients are set to zero.
    """
    torch.manual_seed(1)
    model = nn.Linear(3, 2).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-3)
    run = trace(
        model, optimizer, mean_loss, queries=ASKED, query_losses=losses, output_dir=folder, precision="64-true",
        moments_tolerance=0.0, **settings,
    )  # fmt: skip
    with run:
        for index in range(BATCHES):
            loss = run.loss(torch.utils.data.default_collate(EXAMPLES[2 * index : 2 * index + 2]))
            for _ in range(steps if index else 0):
                optimizer.step()
            if index >= zero_at:
                optimizer.zero_grad()
            run.backward(loss)
        optimizer.step()
    return ScoreStore.open(folder)


@pytest.mark.parametrize("integration", ["left", "trapezoid"])
@pytest.mark.parametrize("others", [(), ("update",), ("learning",), ("update", "learning")])
def test_scores_are_with_the_queries_of_the_step(others: tuple[str, ...], integration: str, tmp_path: Path) -> None:
    exact = train(tmp_path / "exact", scores=("dot",), integration=integration)
    settings: dict[str, Any] = {"refresh_every_n_steps": 1, "integration": integration, "projection_side": 4}
    projected = train(tmp_path / "projected", scores=("dot", *others), **settings)
    np.testing.assert_allclose(projected.matrix("dot"), exact.matrix("dot"), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("momentum", ["eventual", "exact"])
@pytest.mark.parametrize(("steps", "zero_at"), [(1, 0), (5, 2), (9, 3)])
def test_a_balance_is_kept_as_long_as_it_is_used(steps: int, zero_at: int, momentum: str, tmp_path: Path) -> None:
    """Also by a recording since which several were taken, and by contributions that serve several steps."""
    settings: dict[str, Any] = {"scores": ("update",), "momentum": momentum, "steps": steps, "zero_at": zero_at}
    exact = train(tmp_path / "exact", **settings)
    projected = train(tmp_path / "projected", projection_side=4, **settings)
    np.testing.assert_allclose(projected.matrix("update"), exact.matrix("update"), rtol=1e-9, atol=1e-12)
