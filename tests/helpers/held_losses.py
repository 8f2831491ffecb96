"""Per-example gradients of losses, in a query's pass and in a training step, held against autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ftrace.gradients import GradientCapture, LayoutBook
from helpers import oracle

BATCH = 4


def hold(
    module: nn.Module, losses: Callable[[], Tensor], count: int = BATCH, capture: GradientCapture | None = None
) -> LayoutBook:
    """Hold what is read against autograd one example at a time, and what autograd finds against itself unheard."""
    torch.autograd.backward(losses().sum())
    alone = [parameter.grad for parameter in module.parameters()]
    module.zero_grad()
    capture = capture or GradientCapture(module, strict=True)
    with capture:
        for trains in (False, True):  # as a query's pass, and then as a training step
            with capture.recording(count) as recording:
                recording.backward(losses()) if not trains else losses().sum().backward()
                found = recording.gradients()
            rows = oracle.gradients(module, losses)
            for name in rows[0]:
                expected = torch.stack([row[name] for row in rows])
                read = found.dense(name) if name in found.parts else torch.zeros_like(expected)
                torch.testing.assert_close(
                    read, expected, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
                )
    for parameter, grad in zip(module.parameters(), alone, strict=True):
        assert parameter.grad is grad is None or torch.equal(parameter.grad, grad)
    module.zero_grad()
    return capture.book
