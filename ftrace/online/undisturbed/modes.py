"""Modes of a module and of torch that hold during our own passes and are restored afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode while active, and restore each one's own mode."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode


@contextmanager
def without_reentrant_checkpointing() -> Iterator[None]:
    """Run reentrant activation checkpointing as non-reentrant, since ``torch.autograd.grad`` needs that."""
    function: Any = torch.utils.checkpoint.CheckpointFunction

    def apply(run: Any, preserve_rng_state: bool, *args: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(run, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)

    function.apply = staticmethod(apply)
    try:
        yield
    finally:
        del function.apply


def without_autocast(device: torch.device) -> torch.autocast:
    """Switch off autocast that the user's code may have switched on, so that our products have full precision."""
    return torch.autocast(device.type, enabled=False)
