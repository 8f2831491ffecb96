"""Optimizers that train the model and that nobody has named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle


def refuse_foreign_steps(module: nn.Module, named: Sequence[Optimizer], who: str) -> list[RemovableHandle]:
    """Refuse steps of other optimizers that train the module's parameters.

    An optimizer that wraps a named one, and steps it in its own step, is none of them.

    Args:
        named: The optimizers that are followed.
        who: Whose messages these are.

    Returns:
        Handles that end this.
    """
    of_module = {id(parameter) for parameter in module.parameters()}
    followed = {id(optimizer) for optimizer in named}
    steps = 0  # of the followed
    begun: dict[int, int] = {}

    def trains_module(optimizer: Optimizer) -> bool:
        return any(id(p) in of_module for group in optimizer.param_groups for p in group["params"])

    def before(optimizer: Optimizer, *args: Any) -> None:
        begun[id(optimizer)] = steps

    def after(optimizer: Optimizer, *args: Any) -> None:
        nonlocal steps
        if id(optimizer) in followed:
            steps += 1
        elif begun.get(id(optimizer)) == steps and trains_module(optimizer):
            raise ValueError(
                f"{who}: {type(optimizer).__name__} steps parameters of the model, and is not among the "
                f"{len(followed)} optimizers that were named, so its steps would have no scores. Name all optimizers "
                "from the start: trace(model, [first, second], ...)"
            )

    return [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
