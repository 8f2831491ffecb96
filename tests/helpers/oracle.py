"""Slow and exact: gradients by plain autograd, one example at a time, over all trainable parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def gradients(module: nn.Module, losses: Callable[[], Tensor]) -> list[dict[str, Tensor]]:
    """For each of the losses, its gradient for every parameter by name (zeros where it has none)."""
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    rows = []
    for loss in losses():
        found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        rows.append(
            {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)}
        )
    return rows


def flat(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in gradient.values()])


def matrix(rows: list[dict[str, Tensor]]) -> Tensor:
    """``[examples, all parameters]``."""
    return torch.stack([flat(row) for row in rows])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())
