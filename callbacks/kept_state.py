"""A module's weights, buffers and attributes, put back after passes of ours, of which training must see nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from ftrace.callbacks.kept_objects import keep, reachable, stand_in_for_iterators
from ftrace.callbacks.processes import local
from torch import Tensor, nn


class KeptState:
    """Leaves a module as it was, whatever its passes write to: embeddings with ``max_norm``, counters, metrics, queues.

    What it keeps (:mod:`ftrace.callbacks.kept_objects`) is put back, random generators of its own among it. What its
    passes change elsewhere (files, the variables of closures) they change once more.

    Args:
        module: The module.
        always: Whether to copy all tensors before each pass, for steps that may write to anything now and then.
            Otherwise all are copied before the first pass, and then new ones and those that passes wrote to.
    """

    def __init__(self, module: nn.Module, *, always: bool = False) -> None:
        self._module = module
        self._always = always
        self._unwritten: set[int] = set()  # ids of tensors

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Everything is afterwards as it was."""
        values = reachable(self._module)
        put_back = [function for value in values if (function := keep(value)) is not None]
        tensors = [value for value in values if isinstance(value, Tensor) and id(value) not in self._unwritten]
        copies = [local(tensor).to("cpu", copy=True) for tensor in tensors]
        stand_in_for_iterators(values)
        try:
            yield
        finally:
            for function in put_back:
                function()
            for tensor, value in zip(tensors, copies, strict=True):
                if not _equal(local(tensor).cpu(), value):
                    with torch.no_grad():
                        local(tensor).copy_(value)
                elif not self._always:
                    self._unwritten.add(id(tensor))


def _equal(first: Tensor, second: Tensor) -> bool:
    """Bit by bit, so that what is no number equals itself."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.is_floating_point() or first.is_complex():
        return bool(((first == second) | (first.isnan() & second.isnan())).all())
    return torch.equal(first, second)
