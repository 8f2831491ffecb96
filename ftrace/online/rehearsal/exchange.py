"""Batches in which some examples have others' inputs: which tensors hold examples, and along which axis."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_UNSIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}  # of the same bits

Place = tuple[Any, ...]  # where in a batch something is: keys, indices and names of attributes


@dataclass(frozen=True)
class Inputs:
    """What a batch holds.

    Args:
        count: Examples in it.
        axes: By place, the axis along which a tensor holds the examples.
        loose: Tensors in which no examples can be found, though their leading axis is a multiple of their number.
        shapes: Of all tensors, by place.
    """

    count: int
    axes: Mapping[Place, int]
    loose: tuple[Place, ...]
    shapes: Mapping[Place, tuple[int, ...]]

    def without(self, places: Collection[Place]) -> Inputs:
        """The same with some tensors left as they are."""
        return dataclasses.replace(self, axes={place: axis for place, axis in self.axes.items() if place not in places})

    def turned(self) -> list[Inputs]:
        """The same with other axes, where a tensor has several of that length."""
        turned = {
            place: next(
                (a for a in range(axis + 1, len(self.shapes[place])) if self.shapes[place][a] == self.count), axis
            )
            for place, axis in self.axes.items()
        }
        return [dataclasses.replace(self, axes=turned)] if turned != self.axes else []

    def with_fewer(self) -> list[Inputs]:
        """The same without one tensor each."""
        return [self.without([place]) for place in self.axes] if len(self.axes) > 1 else []


def find_inputs(batch: Any, count: int, ids: Place) -> Inputs:
    """Find the examples in a batch.

    Args:
        batch: One dataloader's.
        count: How many examples it has.
        ids: Where their ids are, which are no input by themselves.
    """
    axes: dict[Place, int] = {}
    shapes: dict[Place, tuple[int, ...]] = {}

    def look(place: Place, value: Any) -> Any:
        shapes[place] = tuple(value.shape) if isinstance(value, Tensor | np.ndarray) else (len(value),)
        axis = next((a for a, length in enumerate(shapes[place]) if length == count), None)
        if axis is not None:
            axes[place] = axis
        return value

    _mapped(batch, (), look, count)
    loose = tuple(
        place
        for place, shape in shapes.items()
        if place not in axes and shape and shape[0] > count and shape[0] % max(1, count) == 0
    )
    if set(axes) <= {ids}:
        axes = {}
    return Inputs(count, axes, loose, shapes)


def rows_in(batch: Any, count: int) -> dict[Place, Tensor]:
    """The tensors of a batch that hold examples, with these first, ``[B, ...]``, by place."""
    found: dict[Place, Tensor] = {}

    def look(place: Place, value: Any) -> Any:
        if isinstance(value, Tensor) and count in value.shape:
            found[place] = value.movedim(value.shape.index(count), 0)
        return value

    _mapped(batch, (), look, count)
    return found


def exchanged(batch: Any, inputs: Inputs, sources: Sequence[int] | None, *, stirred: bool = False) -> Any:
    """A copy of a batch in which each example has the inputs of another.

    Args:
        batch: One dataloader's.
        inputs: What it holds.
        sources: For each example, whose inputs it gets (-1: its own, changed); default: its own.
        stirred: Whether to turn around those tensors in which no examples can be found.
    """

    def take(place: Place, value: Any) -> Any:
        axis = inputs.axes.get(place)
        if axis is None or sources is None:
            if stirred and place in inputs.loose:
                return value.roll(1, 0) if isinstance(value, Tensor) else np.roll(value, 1, 0)
            return value.clone() if isinstance(value, Tensor) else copy.copy(value)
        if isinstance(value, Tensor):
            turned = _turned(value, axis) if sources[0] < 0 else value
            index = torch.tensor(list(sources), device=value.device).clamp_min(0)
            if value.dtype in _UNSIGNED:
                return turned.view(_UNSIGNED[value.dtype]).index_select(axis, index).view(value.dtype)
            return turned.index_select(axis, index)
        if isinstance(value, np.ndarray):
            return np.take(value, [max(0, source) for source in sources], axis)
        return type(value)(value[max(0, source)] for source in sources) if not hasattr(value, "_fields") else value

    return _mapped(batch, (), take, inputs.count)


def copied(batch: Any) -> Any:
    """A copy of a batch, tensors and all."""
    return _mapped(batch, (), lambda place, value: value.clone() if isinstance(value, Tensor) else copy.copy(value), -1)


def outline(batch: Any) -> Any:
    """A copy of a batch that has the same tensors, from which a step may take some without it being noticed."""
    if isinstance(batch, dict):
        made = copy.copy(batch)
        made.update({key: outline(own) for key, own in batch.items()})
        return made
    return list(map(outline, batch)) if type(batch) is list else batch


def _turned(value: Tensor, axis: int) -> Tensor:
    """Other inputs for the only example of a batch: its own, moved along another axis."""
    others = [a for a in range(value.ndim) if a != axis and value.shape[a] > 1]
    return value.roll(1, others[0]) if others else value


def _mapped(value: Any, place: Place, function: Callable[[Place, Any], Any], count: int) -> Any:
    """A copy of a batch, with its tensors, arrays and lists of one element an example changed."""
    if isinstance(value, Tensor | np.ndarray):
        return function(place, value)
    if isinstance(value, Mapping):
        return _with_items(value, {key: _mapped(own, (*place, key), function, count) for key, own in value.items()})
    if isinstance(value, str | bytes) or value is None:
        return value
    if isinstance(value, list | tuple):
        if len(value) == count and (_is_of_examples(value, place) or not any(_holds(own, count) for own in value)):
            return function(place, value)
        several = [_mapped(own, (*place, index), function, count) for index, own in enumerate(value)]
        return type(value)(*several) if hasattr(value, "_fields") else type(value)(several)
    attributes = _attributes(value)
    if attributes and not callable(value):
        made = copy.copy(value)
        for name, own in attributes.items():
            if isinstance(own, Tensor | np.ndarray | Mapping | list | tuple):
                object.__setattr__(made, name, _mapped(own, (*place, name), function, count))
        return made
    return value


def _attributes(value: Any) -> dict[str, Any]:
    slots = [name for one in type(value).__mro__ for name in getattr(one, "__slots__", ())]
    return {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})


def _with_items(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A copy of a mapping with other values; a plain dictionary if it can't be copied without writing to it."""
    before = dict(value)
    made: Any = copy.copy(value)
    if made is value:
        return items
    for name, inner in _attributes(value).items():
        if isinstance(inner, dict):  # a shallow copy may share it
            fresh = copy.copy(inner)
            if inner.keys() == before.keys():
                fresh.update(items)
            object.__setattr__(made, name, fresh)
    if not all(made[key] is own for key, own in items.items()):
        try:
            for key, own in items.items():
                made[key] = own
        except (TypeError, AttributeError, NotImplementedError, RuntimeError):  # as of what can't be changed
            made = items
    if any(value[key] is own and own is not before[key] for key, own in items.items()):  # it was no copy
        for key, own in before.items():
            value[key] = own  # type: ignore[index]
        return items
    return made


def _is_of_examples(value: Sequence[Any], place: Place) -> bool:
    """Whether a list that is as long as the batch holds one thing for each example, and not the batch's tensors."""
    kinds = ((Tensor, np.ndarray), Mapping)
    return bool(place) and len(value) > 0 and any(all(isinstance(own, kind) for own in value) for kind in kinds)


def _holds(value: Any, count: int) -> bool:
    """Whether something has an axis of that length itself, so that a list of such is no list of examples."""
    if isinstance(value, Tensor | np.ndarray):
        return count in value.shape
    return isinstance(value, Mapping | list | tuple) and len(value) > 0 and not isinstance(value, str)
