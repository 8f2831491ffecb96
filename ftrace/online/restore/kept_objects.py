"""What a module keeps beside tensors: lists, queues, arrays, random generators, objects. Found, and put back."""

from __future__ import annotations

import array
import copy
import functools
import io
import random
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
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
_LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event, threading.Thread)
# What training itself changes, and what has nothing to put back.
_LEFT_ALONE = (
    Dataset, type, types.ModuleType, types.FunctionType, types.MethodType,
    types.BuiltinFunctionType, functools.partial, io.IOBase, str, bytes, int, float, complex, bool, torch.dtype,
    torch.device, torch.Size, *_LOCKS,
)  # fmt: skip
_OF_TORCH = (nn.Module, LRScheduler, DataLoader, Sampler)
_PACKAGES = ("torch.", "lightning.", "pytorch_lightning.", "transformers.", "tokenizers.", "ftrace.", "_")


def reachable(*roots: Any, left_alone: tuple[type, ...] = ()) -> list[Any]:
    """Collect all that objects keep, and what that keeps in turn, each once.

    Args:
        roots: Where to begin.
        left_alone: Classes whose instances are neither listed nor looked into. Very large collections are listed only.
    """
    waiting = list(roots)
    skipped = (*_LEFT_ALONE, *left_alone)
    seen: dict[int, Any] = {}
    while waiting:
        value = waiting.pop()
        if value is None or id(value) in seen or type(value) in weakref.ProxyTypes or isinstance(value, skipped):
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
            waiting += [own for name, own in vars(value).items() if name not in _internal(value)]
    return list(seen.values())


def _is_object(value: Any) -> bool:
    """Whether something has attributes that a step may set. One with locks belongs to other threads, too."""
    if not isinstance(getattr(value, "__dict__", None), dict) or isinstance(value, Tensor | Optimizer):
        return False
    if isinstance(value, _OF_TORCH):
        return True
    foreign = type(value).__module__.startswith(_PACKAGES)
    return not foreign and not any(isinstance(own, _LOCKS) for own in vars(value).values())


def _internal(value: Any) -> frozenset[str]:
    return _OF_MODULES if isinstance(value, nn.Module) else frozenset()


def keep(value: Any) -> PutBack | None:
    """A function that makes something again what it is now; None if there is nothing to put back.

    Tensors and arrays are restored by :class:`ftrace.online.restore.kept_state.KeptState`.
    """
    if isinstance(value, Tensor | np.ndarray):
        return None
    if isinstance(value, random.Random):
        return functools.partial(value.setstate, value.getstate())
    if isinstance(value, np.random.RandomState):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, torch.Generator):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, list | bytearray | array.array):
        return functools.partial(value.__setitem__, slice(None), copy.copy(value))
    if isinstance(value, deque):
        return functools.partial(_refill, value, list(value), value.extend)
    if isinstance(value, dict | set):
        return functools.partial(_refill, value, copy.copy(value), value.update)
    if _is_object(value):
        return _keep_attributes(value)
    return None


def _refill(value: Any, content: Any, fill: Callable[[Any], None]) -> None:
    value.clear()
    fill(content)


def _keep_attributes(value: Any) -> PutBack:
    own = vars(value)
    before = dict(own)
    # What a module's own dictionaries hold may be swapped by sharding: what a step adds to them goes, the rest stays.
    hooks = {name: list(before[name]) for name in _internal(value) if isinstance(before.get(name), dict)}

    def put_back() -> None:
        own.clear()
        own.update(before)
        for name, keys in hooks.items():
            for key in [key for key in own[name] if key not in keys]:
                del own[name][key]

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
    """Let attributes and elements that are iterators be copies, from which nobody minds that something is drawn.

    Where there is no copying one, such as a generator, something stands in that refuses to be drawn from. The owners
    must have been kept.
    """
    for owner in values:
        if isinstance(owner, dict | list | deque):
            places: Any = list(owner.items() if isinstance(owner, dict) else enumerate(owner))
            for place, value in places:
                if _is_iterator(value):
                    owner[place] = _copy_of(value, str(place))
        elif _is_object(owner):
            for name, value in list(vars(owner).items()):
                if _is_iterator(value):
                    vars(owner)[name] = _copy_of(value, name)


def _is_iterator(value: Any) -> bool:
    """Whether something is drawn from, and has no attributes that can be put back."""
    drawn = callable(getattr(type(value), "__next__", None)) and not isinstance(value, io.IOBase)
    return drawn and not _is_object(value)


def _copy_of(value: Any, name: str) -> Any:
    if type(value).__module__ in ("builtins", "itertools"):
        try:
            return copy.deepcopy(value)
        except (TypeError, RecursionError):
            pass
    return _NotToBeDrawnFrom(value, name)


class _NotToBeDrawnFrom:
    """Stands in for an iterator that can't be put back."""

    def __init__(self, own: Any, name: str) -> None:
        self._own, self._name = own, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        raise ValueError(
            f"the step draws from {self._name!r}, a {type(self._own).__name__} that the module keeps, which can't be "
            "put back after the step is rehearsed. Draw from it in the data loader, or keep itertools.cycle(list), a "
            "list and a position, or a torch.Generator"
        )

    def send(self, value: Any) -> Any:
        """Refuse, too."""
        return next(self)
