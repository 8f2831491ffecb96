"""Objects that a module keeps beside tensors, such as lists, queues and random generators: found and restored."""

from __future__ import annotations

import array
import copy
import functools
import io
import random
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler

PutBack = Callable[[], Any]

_MOST_INSIDE = 10_000
_OF_MODULES = frozenset(nn.Module().__dict__) - {"_buffers", "_parameters", "_modules"}
_HOOKS_OF_MODULES = tuple(
    name for name, value in vars(nn.Module()).items() if name in _OF_MODULES and isinstance(value, dict)
)
_LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event, threading.Thread)
# What training itself changes, and what has no state to restore.
_LEFT_ALONE = (
    Dataset, type, types.ModuleType, types.FunctionType, types.MethodType,
    types.BuiltinFunctionType, functools.partial, io.IOBase, str, bytes, int, float, complex, bool, torch.dtype,
    torch.device, torch.Size, *_LOCKS,
)  # fmt: skip
_OF_TORCH = (nn.Module, LRScheduler, DataLoader, Sampler)
_PACKAGES = ("torch.", "lightning.", "pytorch_lightning.", "transformers.", "tokenizers.", "ftrace.")
_INNER_MODULES = frozenset(name for name in sys.stdlib_module_names if name.startswith("_"))  # not __main__


def reachable(*roots: Any, left_alone: tuple[type, ...] = ()) -> list[Any]:
    """Collect all objects that can be reached from the given ones, each once.

    The elements of very large collections are not followed.

    Args:
        roots: The objects to start from.
        left_alone: Classes whose instances are neither collected nor followed.
    """
    waiting = list(roots)
    skipped = (*_LEFT_ALONE, *left_alone)
    is_skipped: dict[type, bool] = {type(None): True}  # a model has thousands of values, of some dozens of classes
    seen: dict[int, Any] = {}
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if kind not in is_skipped:
            is_skipped[kind] = kind in weakref.ProxyTypes or isinstance(value, skipped)
        if is_skipped[kind] or id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor | np.ndarray):
            continue
        if isinstance(value, dict):
            waiting += list(value.values()) if len(value) <= _MOST_INSIDE else []
        elif isinstance(value, list | tuple | set | frozenset | deque):
            waiting += list(value) if len(value) <= _MOST_INSIDE else []
        elif isinstance(value, Optimizer):
            waiting += value.param_groups
        elif _is_object(value):
            internal = _internal(value)
            waiting += [attribute for name, attribute in _attributes(value) if name not in internal]
    return list(seen.values())


def _is_object(value: Any) -> bool:
    """Whether a value has attributes that a step may set. Excluded are objects with locks: other threads use them."""
    if isinstance(value, Tensor | Optimizer):
        return False
    if not isinstance(getattr(value, "__dict__", None), dict) and not _slots(type(value)):
        return False
    if isinstance(value, _OF_TORCH):
        return True
    module = type(value).__module__
    foreign = module.startswith(_PACKAGES) or module.partition(".")[0] in _INNER_MODULES
    return not foreign and not any(isinstance(attribute, _LOCKS) for _, attribute in _attributes(value))


_slots_of_kinds: dict[type, tuple[types.MemberDescriptorType, ...]] = {}


def _slots(kind: type) -> tuple[types.MemberDescriptorType, ...]:
    """Return the attributes that a class and its bases declare in ``__slots__``."""
    slots = _slots_of_kinds.get(kind)
    if slots is None:
        bases = [vars(base) for base in kind.__mro__ if "__slots__" in vars(base)]
        members = [member for base in bases for member in base.values()]
        slots = _slots_of_kinds[kind] = tuple(one for one in members if isinstance(one, types.MemberDescriptorType))
    return slots


def _attributes(value: Any) -> Iterable[tuple[str, Any]]:
    """List the attributes of a value that has been found to be an object, with their names."""
    slots = _slots(type(value))
    if not slots:
        return vars(value).items()
    in_slots = [(slot.__name__, slot.__get__(value)) for slot in slots if _is_set(slot, value)]
    return [*getattr(value, "__dict__", {}).items(), *in_slots]


def _is_set(slot: types.MemberDescriptorType, value: Any) -> bool:
    try:
        slot.__get__(value)
    except AttributeError:
        return False
    return True


def _internal(value: Any) -> frozenset[str]:
    """Return the attributes of a value that belong to ``nn.Module`` itself."""
    return _OF_MODULES if isinstance(value, nn.Module) else frozenset()


def keep(value: Any) -> PutBack | None:
    """Return a function that restores the current state of a value; None if it has no state to restore.

    Tensors and arrays are restored by :class:`ftrace.online.undisturbed.kept_state.KeptState`.
    """
    if isinstance(value, Tensor | np.ndarray):
        return None
    if isinstance(value, dict | set):
        return functools.partial(_refill, value, copy.copy(value), value.update)
    if isinstance(value, list | bytearray | array.array):
        return functools.partial(value.__setitem__, slice(None), copy.copy(value))
    if isinstance(value, deque):
        return functools.partial(_refill, value, list(value), value.extend)
    if isinstance(value, nn.Module):
        return _keep_attributes(value)
    if isinstance(value, random.Random):
        return functools.partial(value.setstate, value.getstate())
    if isinstance(value, np.random.RandomState):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, torch.Generator):
        return functools.partial(value.set_state, value.get_state())
    if _is_object(value):
        return _keep_attributes(value)
    return None


def _refill(value: Any, content: Any, fill: Callable[[Any], None]) -> None:
    value.clear()
    fill(content)


def _keep_attributes(value: Any) -> PutBack:
    attributes = getattr(value, "__dict__", {})
    before = dict(attributes)
    slots = _slots(type(value))
    of_slots = {slot: slot.__get__(value) for slot in slots if _is_set(slot, value)}
    # Sharding may replace entries of a module's own dictionaries, so only what a step adds or removes is put back.
    hooks = {}
    if isinstance(value, nn.Module):
        of_module = [(name, before.get(name)) for name in _HOOKS_OF_MODULES]
        hooks = {name: dict(entries) if entries else {} for name, entries in of_module if isinstance(entries, dict)}

    def put_back() -> None:
        attributes.clear()
        attributes.update(before)
        for slot in slots:
            if slot in of_slots:
                slot.__set__(value, of_slots[slot])
            elif _is_set(slot, value):
                slot.__delete__(value)
        for name, old in hooks.items():
            entries = attributes[name]
            if (entries or old) and entries.keys() != old.keys():
                _refill(entries, {key: entries.get(key, entry) for key, entry in old.items()}, entries.update)

    return put_back


def random_generators(root: nn.Module, left_alone: tuple[type, ...] = ()) -> list[PutBack]:
    """List functions that restore the random generators that a module keeps."""
    kinds = (random.Random, np.random.RandomState, np.random.Generator, torch.Generator)
    return [
        put_back
        for value in reachable(root, left_alone=left_alone)
        if isinstance(value, kinds) and (put_back := keep(value))
    ]


def stand_in_for_iterators(values: list[Any]) -> None:
    """Replace attributes and elements that are iterators by copies, so that drawing from them has no effect.

    An iterator that can't be copied, such as a generator, is replaced by an object that refuses to be drawn from. The
    state of the owners must have been kept before (:func:`keep`).
    """
    drawn_from: dict[type, bool] = {}
    for owner in values:
        if isinstance(owner, Tensor):
            continue
        if isinstance(owner, dict | list | deque):
            items: Any = owner.items() if isinstance(owner, dict) else enumerate(owner)
            target = owner
        elif _is_object(owner):
            target = None
            items = _attributes(owner)
        else:
            continue
        for key, value in list(items):
            kind = type(value)
            if kind not in drawn_from:
                drawn_from[kind] = callable(getattr(kind, "__next__", None))
            if drawn_from[kind] and _is_iterator(value):
                replacement = _copy_of(value, str(key))
                if target is None:
                    _set_attribute(owner, key, replacement)
                else:
                    target[key] = replacement


def _set_attribute(owner: Any, name: str, value: Any) -> None:
    """Set an attribute as it is stored, past the class's own ``__setattr__``."""
    for slot in _slots(type(owner)):
        if slot.__name__ == name:
            slot.__set__(owner, value)
            return
    vars(owner)[name] = value


def _is_iterator(value: Any) -> bool:
    """Whether a value is an iterator without attributes that can be restored."""
    is_drawn_from = callable(getattr(type(value), "__next__", None)) and not isinstance(value, io.IOBase)
    return is_drawn_from and not _is_object(value)


def _copy_of(value: Any, name: str) -> Any:
    if type(value).__module__ in ("builtins", "itertools"):
        try:
            return copy.deepcopy(value)
        except (TypeError, RecursionError):
            pass
    return _NotToBeDrawnFrom(value, name)


class _NotToBeDrawnFrom:
    """The stand-in for an iterator that can't be copied."""

    def __init__(self, iterator: Any, name: str) -> None:
        self._iterator, self._name = iterator, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        raise ValueError(
            f"the step draws from {self._name!r}, a {type(self._iterator).__name__} that the module keeps, which can't "
            "be restored after the step is rehearsed. Draw from it in the data loader, or keep itertools.cycle(list), "
            "a list and a position, or a torch.Generator"
        )

    def send(self, value: Any) -> Any:
        """Refuse like :meth:`__next__`."""
        return next(self)
