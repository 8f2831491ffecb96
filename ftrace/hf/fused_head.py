"""TRL's fused head, which uses the weight of a model's head outside of it, told to whoever records the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftrace.gradients import FusedHead, record_head

try:
    from trl.trainer import utils as _utils
except ImportError:
    _trl: Any = None
else:
    _trl = _utils
_NAME = "_ChunkedLogProbFunction"


class _ToldHead:
    """TRL's function, whose runs on a model's own head are told.

    Args:
        function: The function.
        head: The model's head.
    """

    def __init__(self, function: Any, head: nn.Linear) -> None:
        self._function = function
        self._head = head

    def apply(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        scale: float = 1.0,
        *outputs: Any,
    ) -> tuple[Tensor | None, ...]:
        """Do what the function does, and tell it."""
        made: tuple[Tensor | None, ...] = self._function.apply(
            hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, *outputs
        )
        if weight is self._head.weight and bias is self._head.bias:
            device = hidden.device.type
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
            head = FusedHead(self._head, hidden, targets, temperature, softcap, scale, dtype)
            record_head(head, {"log_probs": made[0], "entropy": made[1]})
        return made


@contextmanager
def told_head(model: Any) -> Iterator[None]:
    """Tell the runs of TRL's fused head on a model while active; a TRL without one is left alone."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
    function = getattr(_trl, _NAME, None)
    if function is None or not isinstance(head, nn.Linear):
        yield
        return
    setattr(_trl, _NAME, _ToldHead(function, head))
    try:
        yield
    finally:
        setattr(_trl, _NAME, function)
