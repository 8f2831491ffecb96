"""What OnlineTracIn needs to know of the loop it is in, and the loops that it refuses."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.optim import Optimizer

from ftrace.gradients import is_compiled

_PRECISIONS = ("32-true", "64-true")


def refuse_unsupported_loop(trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuse, by name and with the remedy, any training loop whose scores would be wrong.

    Raises:
        ValueError: If the loop is not one that is supported.
    """
    for problem in _problems(trainer, pl_module):
        raise ValueError(f"OnlineTracIn: {problem}")


def _problems(trainer: Trainer, pl_module: LightningModule) -> Iterator[str]:
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        name = type(trainer.strategy).__name__
        yield f"expected one process on one device, found strategy {name}. Train with Trainer(devices=1)."
    if not pl_module.automatic_optimization:
        yield "expected automatic optimization, found automatic_optimization=False. Let Lightning step the optimizer."
    if len(trainer.optimizers) != 1:
        yield f"expected one optimizer, found {len(trainer.optimizers)}. Put all parameters into groups of one."
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
        yield "LBFGS evaluates a batch several times a step, so a step is no sum over examples. Use another optimizer."
    if any(group["lr"] is None for optimizer in trainer.optimizers for group in optimizer.param_groups):
        yield "expected a learning rate, found None: the optimizer makes its own. Set lr=..., relative_step=False."
    if trainer.precision not in _PRECISIONS:
        yield f"expected precision {' or '.join(_PRECISIONS)}, found {trainer.precision}. Set Trainer(precision=...)."
    if any(group.get("maximize") for optimizer in trainer.optimizers for group in optimizer.param_groups):
        yield "an optimizer with maximize=True climbs, and scores say what descending did. Negate the loss instead."
    if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
        yield 'clipping by value is not linear in the gradient. Set Trainer(gradient_clip_algorithm="norm").'
    if is_overridden("configure_gradient_clipping", pl_module, LightningModule):
        name = type(pl_module).__name__
        yield f"{name} overrides configure_gradient_clipping. Use Trainer(gradient_clip_val=...) instead."
    if any(is_compiled(module) for module in pl_module.modules()):
        yield "hooks registered on a compiled module may never fire. Train without torch.compile."


def refuse_unfrozen(optimizer: Optimizer, known: Collection[nn.Parameter]) -> None:
    """Refuse a parameter that has a gradient now and had none to expect when training began.

    Raises:
        ValueError: If there is one.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and parameter not in known:
                raise ValueError(
                    f"OnlineTracIn: a parameter of shape {tuple(parameter.shape)} was unfrozen or added to the "
                    "optimizer after training began, which is not supported yet. Train it from the start"
                )


def gradient_norm(optimizer: Optimizer) -> float:
    """Norm of the gradient that the optimizer has before it, over all its parameters."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(grads))


def clip_factor(trainer: Trainer, norm: float | None) -> float:
    """kappa: what clipping is about to multiply a gradient of that norm with (``clip_grad_norm_``'s formula).

    Without clipping, the norm need not be known.
    """
    limit = float(trainer.gradient_clip_val or 0)
    if limit <= 0:
        return 1.0
    assert norm is not None
    return min(1.0, limit / (norm + 1e-6))


def keeps_gradients(optimizer: Optimizer) -> bool:
    """Whether the gradients that the optimizer leaves behind are surely those that it was given.

    Nesterov momentum is added in place by foreach SGD, and optimizers from elsewhere may do anything.
    """
    nesterov = any(group.get("nesterov") for group in optimizer.param_groups)
    return type(optimizer).__module__.startswith("torch.optim.") and not nesterov


def zeroes_gradients_itself(pl_module: LightningModule) -> bool:
    """Whether the module may have set gradients to zero once the optimizer's step was done."""
    hooks = ("optimizer_step", "optimizer_zero_grad")
    return any(is_overridden(hook, pl_module, LightningModule) for hook in hooks)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Every submodule in eval mode, and each back in its own mode afterwards."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode
