"""A module's weights, buffers and attributes, put back after passes of ours, of which training must see nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from ftrace.callbacks.processes import local
from torch import Tensor, nn

_MOST_INSIDE = 10_000
_INTERNAL = frozenset(nn.Module().__dict__) - {"_buffers"}


class KeptState:
    """Leaves a module as it was, whatever its forward pass writes to: embeddings with ``max_norm``, counters, metrics.

    Args:
        module: The module.
        always: Whether to copy all before each pass, lists and dictionaries too, for steps that may write to anything
            now and then. Otherwise all tensors are copied before the first pass, and then those that it wrote to.
    """

    def __init__(self, module: nn.Module, *, always: bool = False) -> None:
        self._module = module
        self._always = always
        self._written: set[int] | None = None  # ids of tensors

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Everything is afterwards as it was."""
        attributes = [(one, dict(one.__dict__)) for one in self._module.modules()]
        containers = list(_containers(self._module)) if self._always else []
        tensors = list({id(tensor): tensor for tensor in self._tensors(containers)}.values())
        if self._written is not None and not self._always:
            tensors = [tensor for tensor in tensors if id(tensor) in self._written]
        copies = [local(tensor).to("cpu", copy=True) for tensor in tensors]
        try:
            yield
        finally:
            for one, own in attributes:
                one.__dict__.clear()
                one.__dict__.update(own)
            for container, content in containers:
                container.clear()
                container.extend(content) if isinstance(container, list) else container.update(content)
            written = set()
            for tensor, value in zip(tensors, copies, strict=True):
                if not _equal(local(tensor).cpu(), value):
                    local(tensor).copy_(value)
                    written.add(id(tensor))
            self._written = written | (self._written or set())

    def _tensors(self, containers: list[tuple[Any, Any]]) -> Iterator[Tensor]:
        yield from self._module.parameters()
        yield from self._module.buffers()
        yield from (value for value in _kept(self._module) if isinstance(value, Tensor))
        for _, content in containers:
            yield from (
                own for own in (content.values() if isinstance(content, dict) else content) if isinstance(own, Tensor)
            )


def _equal(first: Tensor, second: Tensor) -> bool:
    """Bit by bit, so that what is no number equals itself."""
    if first.shape != second.shape:
        return False
    if first.is_floating_point():
        return bool(((first == second) | (first.isnan() & second.isnan())).all())
    return torch.equal(first, second)


def _kept(module: nn.Module) -> Iterator[Any]:
    """Whatever modules keep as attributes; no hooks, and no parameters."""
    for one in module.modules():
        yield from (value for name, value in one.__dict__.items() if name not in _INTERNAL)


def _containers(module: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Lists, dictionaries and sets that modules keep (their buffers among them), with what is in each.

    Those in others are looked at unless there are very many, such as a data set's.
    """
    waiting, seen = list(_kept(module)), set()
    while waiting:
        value = waiting.pop()
        if not isinstance(value, list | dict | set) or id(value) in seen:
            continue
        seen.add(id(value))
        yield value, copy.copy(value)
        if len(value) <= _MOST_INSIDE:
            waiting += value.values() if isinstance(value, dict) else value
