"""TRL's fused head, which uses the weight of a model's head outside of it, told to whoever records the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftrace.gradients import FusedHead, record_head
from ftrace.online.rehearsal.exchange import IGNORED
from ftrace.online.undisturbed.replaced import replaced

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

    Attributes:
        labels: Those that the model was called with, ``[R, T]``; None if they aren't known.
    """

    def __init__(self, function: Any, head: nn.Linear) -> None:
        self._function = function
        self._head = head
        self.labels: Tensor | None = None

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
            places, tokens = self._places(hidden)
            head = FusedHead(self._head, hidden, targets, places, tokens, temperature, softcap, scale, dtype)
            record_head(head, {"log_probs": made[0], "entropy": made[1]})
        return made

    def _places(self, hidden: Tensor) -> tuple[Tensor | None, int]:
        """Find which tokens of the batch the hidden states are of: all but each row's last, or those with a label."""
        if self.labels is None:
            return None, 0
        labels = self.labels.to(hidden.device)
        places = torch.arange(labels.numel(), device=hidden.device).view(labels.shape)[:, :-1]
        for kept in (places.flatten(), places[labels[:, 1:] != IGNORED]):
            if len(kept) == len(hidden):
                return kept, labels.numel()
        return None, 0

    def note(self, module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Note the labels of a call of the model: the hook before its forward."""
        labels = kwargs.get("labels")
        is_plain = isinstance(labels, Tensor) and labels.ndim == 2 and kwargs.get("shift_labels") is None
        self.labels = labels if is_plain else None


@contextmanager
def told_head(model: Any) -> Iterator[None]:
    """Tell the runs of TRL's fused head on a model while active; a TRL without one is left alone."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
    function = getattr(_trl, _NAME, None)
    if function is None or not isinstance(head, nn.Linear):
        yield
        return
    told = _ToldHead(function, head)
    handle = base.register_forward_pre_hook(told.note, with_kwargs=True)
    try:
        with replaced(_trl, {_NAME: told}):
            yield
    finally:
        handle.remove()
