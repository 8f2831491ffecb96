"""A training step for rehearsals, as the tests of the engine have it: no Lightning, and plain, seeded tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ftrace.gradients.steps import OnLoss

Batch = dict[str, Tensor]


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter, dtype=torch.float64)
    return module


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass
class Step:
    """A step on a batch.

    Args:
        losses: ``(batch) -> `` lists of losses: one list for each backward pass.
        batch: Tensors that hold the examples along their first axis, or, if their name begins with "time", the second.
        kept: Names of tensors that hold no examples.
        seed: Of the step's own random numbers.
        retains: Whether all backward passes go through one graph.
    """

    losses: Callable[[Batch], Sequence[Tensor]]
    batch: Batch
    kept: tuple[str, ...] = ()
    seed: int = 5
    retains: bool = False
    runs: list[bool] = field(default_factory=list)

    def __call__(
        self,
        on_loss: OnLoss | None,
        *,
        sources: Sequence[int] | None = None,
        fresh: bool = False,
        stirred: bool = False,
    ) -> None:
        self.runs.append(on_loss is not None)
        torch.manual_seed(self.seed + fresh)
        losses = list(self.losses(self.exchanged(sources, stirred)))
        if on_loss is not None:
            for index, loss in enumerate(losses):
                on_loss(loss, self.retains and index + 1 < len(losses))

    def exchanged(self, sources: Sequence[int] | None, stirred: bool) -> Batch:
        made = {}
        for name, tensor in self.batch.items():
            if name in self.kept:
                made[name] = tensor.roll(1, 0) if stirred else tensor
            elif sources is None:
                made[name] = tensor
            elif sources[0] < 0:
                made[name] = tensor.roll(1, -1)
            else:
                made[name] = tensor.index_select(int(name.startswith("time")), torch.tensor(sources))
        return made
