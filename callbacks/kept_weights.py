"""Weights that a module itself writes to when it runs: a pass of ours must leave them as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from ftrace.callbacks.processes import local
from torch import nn

from ftrace.gradients import writes_nothing


class KeptWeights:
    """Puts weights back that a forward pass writes to, such as those of ``nn.Embedding(max_norm=...)``.

    Before the first pass, those of all layers are copied that may do so; after it, only those that did.

    Args:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        known = {id(p) for layer in module.modules() if writes_nothing(layer) for p in layer.parameters(recurse=False)}
        self._named = dict(module.named_parameters())
        self._copied = {name: p for name, p in self._named.items() if id(p) not in known}
        self._trusted = {name for name in self._named if name not in self._copied}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Weights are afterwards what they were.

        Raises:
            RuntimeError: If one was written to that a layer of its kind never writes to.
        """
        copies = {name: local(p).clone() for name, p in self._copied.items()}
        versions = {name: self._named[name]._version for name in self._trusted}
        try:
            yield
        finally:
            written = [name for name, copy in copies.items() if not torch.equal(local(self._named[name]), copy)]
            for name in written:
                local(self._named[name]).copy_(copies[name])
            self._copied = {name: self._named[name] for name in written}
        lost = [name for name, version in versions.items() if self._named[name]._version != version]
        if lost:
            raise RuntimeError(
                f"{lost[0]!r} is written to when the model runs, so each pass beside training would change it: change "
                "weights in the optimizer's step, or in on_train_batch_end"
            )
