"""A module's weights, buffers and attributes, put back after passes of ours, of which training must see nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftrace.online.processes import local
from ftrace.online.restore.kept_objects import keep, reachable, stand_in_for_iterators


class KeptState:
    """Leaves a module as it was, whatever its passes write to: embeddings with ``max_norm``, counters, metrics, queues.

    What it keeps (:mod:`ftrace.online.restore.kept_objects`) is put back, random generators of its own among it. What
    its passes change elsewhere (files, the variables of closures) they change once more.

    Args:
        module: The module.
        *others: Optimizers and schedules, whose settings a step may change.
        always: Whether to copy all tensors and arrays before each pass, for steps that may write to anything now and
            then. Otherwise all are copied before the first pass, and then new ones and those that passes wrote to.
        left_alone: Classes whose instances are neither looked into nor restored.
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
        """Everything is afterwards as it was."""
        values = reachable(*self._roots, left_alone=self._left_alone)
        put_back = [function for value in values if (function := keep(value)) is not None]
        numbers = [value for value in values if _has_numbers(value) and id(value) not in self._unwritten]
        copies = [_copied(value) for value in numbers]
        stand_in_for_iterators(values)
        try:
            yield
        finally:
            for function in put_back:
                function()
            for value, before in zip(numbers, copies, strict=True):
                if not _equal(value, before):
                    _write(value, before)
                elif not self._always:
                    self._unwritten.add(id(value))


def _has_numbers(value: Any) -> bool:
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
    """Bit by bit, so that what is no number equals itself."""
    if isinstance(value, np.ndarray):
        return bool(np.array_equal(value, before))
    first = local(value).cpu()
    if first.shape != before.shape or first.dtype != before.dtype:
        return False
    if first.is_floating_point() or first.is_complex():
        return bool(((first == before) | (first.isnan() & before.isnan())).all())
    return torch.equal(first, before)
