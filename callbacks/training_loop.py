"""What OnlineTracIn needs to know of the loop it is in, and the loops that it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.optim import Optimizer

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
    if trainer.precision not in _PRECISIONS:
        yield f"expected precision {' or '.join(_PRECISIONS)}, found {trainer.precision}. Set Trainer(precision=...)."
    if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
        yield 'clipping by value is not linear in the gradient. Set Trainer(gradient_clip_algorithm="norm").'
    if is_overridden("configure_gradient_clipping", pl_module, LightningModule):
        name = type(pl_module).__name__
        yield f"{name} overrides configure_gradient_clipping. Use Trainer(gradient_clip_val=...) instead."
    if any(_is_compiled(module) for module in pl_module.modules()):
        yield "hooks registered on a compiled module may never fire. Train without torch.compile."


def _is_compiled(module: nn.Module) -> bool:
    compiled_call = getattr(module, "_compiled_call_impl", None)
    return isinstance(module, torch._dynamo.OptimizedModule) or compiled_call is not None


def clip_factor(trainer: Trainer, optimizer: Optimizer) -> float:
    """kappa: what clipping by norm is about to multiply this step's gradient with (``clip_grad_norm_``'s formula)."""
    if not trainer.gradient_clip_val:
        return 1.0
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(grads))
    return min(1.0, float(trainer.gradient_clip_val) / (norm + 1e-6))


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
