"""What callbacks that read gradients need to know of the loop they are in, and the loops that they refuse."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.optim import Optimizer

from ftrace.gradients import is_compiled


def refuse_unsupported_loop(trainer: Trainer, who: str = "OnlineTracIn") -> None:
    """Refuse, by name and with the remedy, any training loop whose scores would be wrong.

    Args:
        trainer: The trainer.
        who: Who refuses.

    Raises:
        ValueError: If the loop is not one that is supported.
    """
    for problem in _problems(trainer):
        raise ValueError(f"{who}: {problem}")


def _problems(trainer: Trainer) -> Iterator[str]:
    strategy = trainer.strategy
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
        yield (
            f"expected one device, DDP or ModelParallelStrategy, found {type(strategy).__name__}, whose gradients "
            'can\'t be read. Set Trainer(strategy="ddp"), or ModelParallelStrategy for sharded weights.'
        )
    elif isinstance(strategy, ModelParallelStrategy) and strategy.device_mesh["tensor_parallel"].size() > 1:
        yield "tensor parallelism splits layers, whose inputs can't be read. Set tensor_parallel_size=1."
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
        yield "LBFGS evaluates a batch several times a step, so a step is no sum over examples. Use another optimizer."
    if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
        yield 'clipping by value is not linear in the gradient. Set Trainer(gradient_clip_algorithm="norm").'


def refuse_batch_statistics(pl_module: LightningModule, names: Collection[str], who: str = "OnlineTracIn") -> None:
    """Refuse layers that mix examples as soon as they run, so that leaving their own parameters out is no help.

    Args:
        pl_module: The module.
        names: Parameters that can't be covered.
        who: Who refuses.

    Raises:
        ValueError: If some belong to layers that normalise by the statistics of their batch.
    """
    found = [
        (path, layer)
        for path, layer in pl_module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and (layer.training or layer.running_mean is None)
        and any(f"{path}.{local}".lstrip(".") in names for local in layer._parameters)
    ]
    if not found:
        return
    path, layer = found[0]
    more = f", and {len(found) - 1} more," if len(found) > 1 else ""
    has_eval = all(one.running_mean is not None for _, one in found)
    remedy = "Put such layers into eval mode before trainer.fit, or use" if has_eval else "Use"
    raise ValueError(
        f"{who}: layer {path!r} ({type(layer).__name__}){more} normalises by the statistics of its batch, so no "
        f"gradient is one example's alone. {remedy} GroupNorm or LayerNorm"
    )


def warn_of_missing_rates(trainer: Trainer, who: str, what: str) -> None:
    """Say so where an optimizer does not tell its learning rate, which is then counted as 1.

    Args:
        trainer: The trainer.
        who: Who says so.
        what: What goes by it.
    """
    for optimizer in trainer.optimizers:
        if any(group.get("lr") is None for group in optimizer.param_groups):
            rank_zero_warn(
                f'{who}: {type(optimizer).__name__} has no learning rate "lr" in its parameter groups: {what} counts '
                "each step with 1. Give the groups their rate as lr=..., where it changes"
            )


def loss_scale(trainer: Trainer) -> float:
    """What the loss has been multiplied with before the backward pass."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0


def scales_inside(trainer: Trainer, optimizer: Optimizer) -> bool:
    """Whether the optimizer takes the loss scale out of its gradients by itself, in its step."""
    return loss_scale(trainer) != 1 and bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def is_compiled_anywhere(pl_module: LightningModule) -> bool:
    """Whether ``torch.compile`` stands between the module, or a part of it, and its hooks."""
    whole = getattr(pl_module, "_compiler_ctx", None) is not None
    return whole or any(is_compiled(module) for module in pl_module.modules())


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
    writes = any(group.get("nesterov") and group.get("foreach") is not False for group in optimizer.param_groups)
    return type(optimizer).__module__.startswith("torch.optim") and not writes


def clips_by_itself(pl_module: LightningModule) -> bool:
    """Whether the module clips in a way of its own, so that how much must be measured."""
    by_hand = not pl_module.automatic_optimization
    return not by_hand and is_overridden("configure_gradient_clipping", pl_module, LightningModule)


def zeroes_gradients_itself(pl_module: LightningModule) -> bool:
    """Whether the module may have set gradients to zero once the optimizer's step was done."""
    hooks = ("optimizer_step", "optimizer_zero_grad")
    return any(is_overridden(hook, pl_module, LightningModule) for hook in hooks)


@contextmanager
def without_reentrant_checkpointing() -> Iterator[None]:
    """Reentrant activation checkpointing runs as the other kind: it refuses to be differentiated for chosen inputs."""
    function: Any = torch.utils.checkpoint.CheckpointFunction

    def apply(run: Any, preserve_rng_state: bool, *args: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(run, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)

    function.apply = staticmethod(apply)
    try:
        yield
    finally:
        del function.apply


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
