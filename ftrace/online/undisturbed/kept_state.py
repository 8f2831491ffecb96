"""The state of a module, which is kept before our own passes and restored after them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftrace.online.processes import local
from ftrace.online.undisturbed.kept_objects import keep, reachable, stand_in_for_iterators


class KeptState:
    """The state of a module that its passes may write to: embeddings with ``max_norm``, counters, metrics, queues.

    Restored are weights, buffers and all that the module keeps (:mod:`ftrace.online.undisturbed.kept_objects`), its own
    random generators included. What passes change elsewhere (files, variables of closures) changes with each of them.

    Args:
        *others: Optimizers and schedules, whose settings a step may change.
        always: Whether to copy all tensors and arrays before each pass, for steps that may write to any of them at
            times. Otherwise all are copied before the first pass; later only new ones and those that passes wrote to.
        left_alone: Classes whose instances are neither followed nor restored.
    """

    def __init__(
        self, module: nn.Module, *others: Any, always: bool = False, left_alone: tuple[type, ...] = ()
    ) -> None:
        self._roots = (module, *others)
        self._left_alone = left_alone
        self._always = always
        self._unwritten: set[int] = set()  # ids of tensors

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Restore the state afterwards."""
        values = reachable(*self._roots, left_alone=self._left_alone)
        put_backs = [put_back for value in values if (put_back := keep(value)) is not None]
        arrays = [value for value in values if _is_array(value) and id(value) not in self._unwritten]
        copies = [_copied(value) for value in arrays]
        stand_in_for_iterators(values)
        try:
            yield
        finally:
            for put_back in put_backs:
                put_back()
            for value, before in zip(arrays, copies, strict=True):
                if not _equal(value, before):
                    _write(value, before)
                elif not self._always:
                    self._unwritten.add(id(value))


def _is_array(value: Any) -> bool:
    """Whether a value is a tensor, or an array that can be written to."""
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.flags.writeable)


def _copied(value: Tensor | np.ndarray) -> Tensor | np.ndarray:
    return local(value).to("cpu", copy=True) if isinstance(value, Tensor) else value.copy()


def _write(value: Tensor | np.ndarray, before: Any) -> None:
    if isinstance(value, Tensor):
        with torch.no_grad():
            local(value).copy_(before)
    else:
        np.copyto(value, before)


def _equal(value: Tensor | np.ndarray, before: Any) -> bool:
    """Whether a value is as before; NaN equals NaN."""
    if isinstance(value, np.ndarray):
        return bool(np.array_equal(value, before))
    first = local(value).cpu()
    if first.shape != before.shape or first.dtype != before.dtype:
        return False
    if torch.equal(first, before):  # at once, without a mask of the tensor's size
        return True
    if first.is_floating_point() or first.is_complex():
        return bool(((first == before) | (first.isnan() & before.isnan())).all())
    return False
