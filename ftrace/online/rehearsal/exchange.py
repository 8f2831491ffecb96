"""The inputs of the examples in a batch, and copies of the batch in which some examples have others' inputs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftrace.gradients import Documents

# Signed dtypes of the same size, for operations that unsigned ones lack.
_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}

IGNORED = -100  # the label of tokens that the loss leaves out

KeyPath = tuple[Any, ...]  # the keys, indices and attribute names that lead to a value in a batch


@dataclass(frozen=True)
class Inputs:
    """The inputs of the examples in a batch: tensors, arrays, and lists of one element per example.

    Args:
        count: The number of examples.
        axes: By key path, the axis of a tensor along which its examples are.
        loose: Tensors in which no examples can be found, though the size of their leading axis is a multiple of
            ``count``.
        shapes: By key path, the shapes of all tensors.
        documents: The tokens of each example, where examples are documents of packed rows; then rows and tokens are the
            leading axes, or tokens alone.
    """

    count: int
    axes: Mapping[KeyPath, int]
    loose: tuple[KeyPath, ...]
    shapes: Mapping[KeyPath, tuple[int, ...]]
    documents: Documents | None = None

    def without(self, paths: Collection[KeyPath]) -> Inputs:
        """Leave out some tensors, which are not exchanged then."""
        return dataclasses.replace(self, axes={path: axis for path, axis in self.axes.items() if path not in paths})

    def turned(self) -> list[Inputs]:
        """Use the next axis of that size in tensors with several; empty if there are no such tensors."""
        if self.documents is not None:
            return []
        turned = {
            path: next((a for a in range(axis + 1, len(self.shapes[path])) if self.shapes[path][a] == self.count), axis)
            for path, axis in self.axes.items()
        }
        return [dataclasses.replace(self, axes=turned)] if turned != self.axes else []

    def with_fewer(self) -> list[Inputs]:
        """Leave out each tensor in turn; empty if there is only one."""
        return [self.without([path]) for path in self.axes] if len(self.axes) > 1 and self.documents is None else []


def find_inputs(batch: Any, count: int, ids: KeyPath) -> Inputs:
    """Find the examples in a batch.

    Args:
        batch: The batch of one dataloader.
        count: The number of its examples.
        ids: The key path of their ids, which alone are no input.
    """
    axes: dict[KeyPath, int] = {}
    shapes: dict[KeyPath, tuple[int, ...]] = {}

    def look(path: KeyPath, value: Any) -> Any:
        shapes[path] = tuple(value.shape) if isinstance(value, Tensor | np.ndarray) else (len(value),)
        axis = next((a for a, length in enumerate(shapes[path]) if length == count), None)
        if axis is not None:
            axes[path] = axis
        return value

    _mapped(batch, (), look, count)
    loose = tuple(
        path
        for path, shape in shapes.items()
        if path not in axes and shape and shape[0] > count and shape[0] % max(1, count) == 0
    )
    if set(axes) <= {ids}:
        axes = {}
    return Inputs(count, axes, loose, shapes)


def rows_in(batch: Any, count: int) -> dict[KeyPath, Tensor]:
    """Return the tensors of a batch that hold examples, by key path, with the axis of the examples first."""
    rows: dict[KeyPath, Tensor] = {}

    def look(path: KeyPath, value: Any) -> Any:
        if isinstance(value, Tensor) and count in value.shape:
            rows[path] = value.movedim(value.shape.index(count), 0)
        return value

    _mapped(batch, (), look, count)
    return rows


def tensors_in(batch: Any) -> dict[KeyPath, Tensor | np.ndarray]:
    """Return all tensors and arrays of a batch, by key path."""
    found: dict[KeyPath, Tensor | np.ndarray] = {}

    def look(path: KeyPath, value: Any) -> Any:
        found[path] = value
        return value

    _mapped(batch, (), look, -1)
    return found


def exchanged(batch: Any, inputs: Inputs, sources: Sequence[int] | None, *, stirred: bool = False) -> Any:
    """Copy a batch, with some examples' inputs exchanged.

    Args:
        batch: The batch of one dataloader.
        sources: For each example, the index of the example whose inputs it gets (-1: its own, changed); default: its
            own.
        stirred: Whether to rotate the tensors in which no examples can be found.
    """

    def take(path: KeyPath, value: Any) -> Any:
        axis = inputs.axes.get(path)
        if axis is None or sources is None:
            if stirred and path in inputs.loose:
                return value.roll(1, 0) if isinstance(value, Tensor) else np.roll(value, 1, 0)
            return value.clone() if isinstance(value, Tensor) else copy.copy(value)
        if inputs.documents is not None:
            tokens = inputs.documents.exchanged(sources)
            flat = value.reshape(len(tokens), -1)
            return _with_the_same_ignored(value, _rows_of(flat, 0, tokens.tolist()).reshape(value.shape))
        if isinstance(value, Tensor):
            turned = _turned(value, axis) if sources[0] < 0 else value
            return _rows_of(turned, axis, [max(0, source) for source in sources])
        if isinstance(value, np.ndarray):
            return _rows_of(value, axis, [max(0, source) for source in sources])
        return type(value)(value[max(0, source)] for source in sources) if not hasattr(value, "_fields") else value

    return _mapped(batch, (), take, inputs.count)


def copied(batch: Any) -> Any:
    """Copy a batch and its tensors."""
    return _mapped(batch, (), lambda path, value: value.clone() if isinstance(value, Tensor) else copy.copy(value), -1)


def outline(batch: Any) -> Any:
    """Copy a batch but not its tensors, so that a step that removes some from the batch leaves the copy as it is."""
    if isinstance(batch, dict):
        made = copy.copy(batch)
        made.update({key: outline(value) for key, value in batch.items()})
        return made
    return list(map(outline, batch)) if type(batch) is list else batch


def _rows_of(value: Any, axis: int, indices: list[int]) -> Any:
    """Return rows of a tensor or an array, along an axis."""
    if isinstance(value, np.ndarray):
        return np.take(value, indices, axis)
    index = torch.tensor(indices, device=value.device)
    if value.dtype in _SIGNED:
        return value.view(_SIGNED[value.dtype]).index_select(axis, index).view(value.dtype)
    return value.index_select(axis, index)


def _with_the_same_ignored(value: Any, exchanged_value: Any) -> Any:
    """Let labels be ignored where they are in the batch, so that heads that leave out tokens get as many."""
    if isinstance(value, np.ndarray):
        return np.where((value == IGNORED) | (exchanged_value == IGNORED), value, exchanged_value)
    if value.is_floating_point() or value.is_complex():
        return exchanged_value
    return torch.where((value == IGNORED) | (exchanged_value == IGNORED), value, exchanged_value)


def _turned(value: Tensor, axis: int) -> Tensor:
    """Make other inputs for the only example of a batch, by rotating its own along another axis."""
    others = [a for a in range(value.ndim) if a != axis and value.shape[a] > 1]
    return value.roll(1, others[0]) if others else value


def _mapped(value: Any, path: KeyPath, function: Callable[[KeyPath, Any], Any], count: int) -> Any:
    """Copy a batch, with a function applied to its tensors, arrays, and lists of one element per example."""
    if isinstance(value, Tensor | np.ndarray):
        return function(path, value)
    if isinstance(value, Mapping):
        return _with_items(value, {key: _mapped(item, (*path, key), function, count) for key, item in value.items()})
    if isinstance(value, str | bytes) or value is None:
        return value
    if isinstance(value, list | tuple):
        if len(value) == count and (_is_of_examples(value, path) or not any(_holds(item, count) for item in value)):
            return function(path, value)
        several = [_mapped(item, (*path, index), function, count) for index, item in enumerate(value)]
        return type(value)(*several) if hasattr(value, "_fields") else type(value)(several)
    attributes = _attributes(value)
    if attributes and not callable(value):
        made = copy.copy(value)
        for name, attribute in attributes.items():
            if isinstance(attribute, Tensor | np.ndarray | Mapping | list | tuple):
                object.__setattr__(made, name, _mapped(attribute, (*path, name), function, count))
        return made
    return value


def _attributes(value: Any) -> dict[str, Any]:
    slots = [name for base in type(value).__mro__ for name in getattr(base, "__slots__", ())]
    return {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})


def _with_items(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """Copy a mapping with other values; return a plain dictionary if that would change the mapping itself."""
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
    if not all(made[key] is item for key, item in items.items()):
        try:
            for key, item in items.items():
                made[key] = item
        except (TypeError, AttributeError, NotImplementedError, RuntimeError):  # as immutable mappings raise
            made = items
    if any(value[key] is item and item is not before[key] for key, item in items.items()):  # it was no real copy
        for key, item in before.items():
            value[key] = item  # type: ignore[index]
        return items
    return made


def _is_of_examples(value: Sequence[Any], path: KeyPath) -> bool:
    """Whether a list as long as the batch holds one element per example, rather than the tensors of the batch."""
    kinds = ((Tensor, np.ndarray), Mapping)
    return bool(path) and len(value) > 0 and any(all(isinstance(item, kind) for item in value) for kind in kinds)


def _holds(value: Any, count: int) -> bool:
    """Whether an element of a list has an axis of this size itself, so that the list is no list of examples."""
    if isinstance(value, Tensor | np.ndarray):
        return count in value.shape
    return isinstance(value, Mapping | list | tuple) and len(value) > 0 and not isinstance(value, str)
