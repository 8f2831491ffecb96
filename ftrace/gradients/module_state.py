"""The state of a module that running it may change: noted before a run, exchanged for another run, and put back."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Beginning:
    """The state that a layer's run begins with.

    Args:
        random_state: Of the CPU, and of the layer's device where that is CUDA.
        weight_versions: The version counter of each parameter.
        buffers: For each buffer, the dictionary that holds it, its name there, and a copy.
    """

    random_state: list[Tensor]
    weight_versions: dict[str, int]
    buffers: list[tuple[dict[str, Any], str, Tensor]]

    @classmethod
    def of(cls, module: nn.Module) -> Beginning:
        """Note a module's current state."""
        buffers = [
            (submodule._buffers, name, buffer.clone())
            for submodule in module.modules()
            for name, buffer in submodule._buffers.items()
            if buffer is not None
        ]
        return cls(random_state(module), weight_versions(module), buffers)

    @contextmanager
    def random_numbers(self, device: torch.device) -> Iterator[None]:
        """Draw the same random numbers again, and leave the random state unchanged."""
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.set_rng_state(self.random_state[0])
            if device.type == "cuda":
                torch.cuda.set_rng_state(self.random_state[1], device)
            yield


def random_state(module: nn.Module) -> list[Tensor]:
    """Read the random state of the CPU, and of the module's device where that is CUDA."""
    device = next(module.parameters()).device
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def weight_versions(module: nn.Module) -> dict[str, int]:
    """Read the version counter of each parameter: it grows whenever the parameter is changed in place."""
    return {name: parameter._version for name, parameter in module.named_parameters()}


@dataclass(frozen=True)
class Slot:
    """The place in a module where a parameter is stored.

    Args:
        tensors: The dictionary that holds it.
        local: Its name there.
    """

    tensors: dict[str, Any]
    local: str

    def value(self) -> Tensor:
        """Get the parameter."""
        parameter: Tensor = self.tensors[self.local]
        return parameter


def slots_of(module: nn.Module, names: Sequence[str]) -> dict[str, Slot]:
    """Find where these parameters are stored; a slot with several names is listed once."""
    slots: dict[str, Slot] = {}
    seen: set[tuple[int, str]] = set()
    for name in names:
        path, _, local = name.rpartition(".")
        owner = module.get_submodule(path)
        if (id(owner), local) not in seen:
            seen.add((id(owner), local))
            slots[name] = Slot(owner._parameters, local)
    return slots


@contextmanager
def swapped(replacements: Sequence[tuple[dict[str, Any], str, Tensor]]) -> Iterator[None]:
    """Put other tensors into a module's slots for a while; the same tensor in other slots is left alone."""
    originals = [(tensors, name, tensors[name]) for tensors, name, _ in replacements]
    try:
        for tensors, name, tensor in replacements:
            tensors[name] = tensor
        yield
    finally:
        for tensors, name, tensor in reversed(originals):
            tensors[name] = tensor


@contextmanager
def kept_attributes(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put back the counters, lists and the like that modules store as attributes."""
    originals = [(module, dict(module.__dict__)) for module in modules]
    internal = nn.Module().__dict__.keys()
    try:
        for module, attributes in originals:
            for name, value in attributes.items():
                if name not in internal and isinstance(value, list | dict | set):
                    module.__dict__[name] = copy.copy(value)
        yield
    finally:
        for module, attributes in originals:
            module.__dict__.clear()
            module.__dict__.update(attributes)
