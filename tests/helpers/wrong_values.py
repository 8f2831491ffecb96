"""Values that are wrong for an annotation, by rules that know nothing of how ftrace checks them."""

from __future__ import annotations

import collections.abc
import inspect
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np

VALUES: tuple[Any, ...] = (
    True, 0, -1, -5, 10**15, 1.5, float("nan"), float("inf"), np.float64(1.5), np.bool_(True), "", "never-heard-of",
    "half \ud800", b"bytes", 1 + 2j, object(), None, [], [[]], ["never-heard-of", 1.5], [None], {}, {"a": 1},
)  # fmt: skip


def bases(kind: Any) -> Iterator[Any]:
    """Yield the types that a union, or an annotation with limits, is made of."""
    if get_origin(kind) is Annotated:
        yield from bases(get_args(kind)[0])
    elif get_origin(kind) in (Union, types.UnionType):
        for each in get_args(kind):
            yield from bases(each)
    else:
        yield kind


def is_known(kind: Any) -> bool:
    """Whether an annotation is made of types of which it is known here what is wrong for them."""
    plain = {int, float, str, bool, type(None), Path}
    return all(
        base in plain or get_origin(base) in (Literal, list, tuple, dict, *_CONTAINERS) or base in _CONTAINERS
        for base in bases(kind)
    )


def wrong_for(kind: Any) -> list[Any]:
    """Return the values that are of none of an annotation's types."""
    return [value for value in VALUES if not any(_may_be(value, base) for base in bases(kind))]


_CONTAINERS = (collections.abc.Sequence, collections.abc.Mapping, collections.abc.Iterable, collections.abc.Collection)


def _may_be(value: Any, base: Any) -> bool:
    origin = get_origin(base) or base
    if base is type(None):
        return value is None
    if base is int:
        return type(value) is int
    if base is float:
        return type(value) in (int, float, np.float64) and abs(value) < float("inf")
    if base is bool:
        return isinstance(value, bool | np.bool_)
    if base is str:
        return isinstance(value, str) and "\ud800" not in value
    if base is Path:
        return isinstance(value, str)
    if origin is Literal:
        return type(value) is str and value in get_args(base)
    if inspect.isclass(origin) and issubclass(origin, collections.abc.Mapping):
        return isinstance(value, dict)
    if origin is collections.abc.Iterable or origin is collections.abc.Collection:
        return isinstance(value, list | dict)
    return isinstance(value, list) and (not value or not _are_wrong(value, base))


def _are_wrong(values: list[Any], base: Any) -> bool:
    """Whether one of a list's values is of none of the types of its elements."""
    of = next(iter(get_args(base)), Any)
    if not is_known(of):
        return False
    return not all(any(_may_be(value, each) for each in bases(of)) for value in values)


def plausible(kind: Any) -> Any:
    """Return a value that an annotation allows; for a class, an object that passes for one of it."""
    base = next(bases(kind))
    origin = get_origin(base) or base
    if get_origin(base) is Literal:
        return get_args(base)[0]
    if base in (int, float, str, bool, type(None), Path, Any):
        return {int: 3, float: 0.5, str: "x", bool: True, Path: Path("x")}.get(base)
    if origin is collections.abc.Callable:
        return len
    if inspect.isclass(origin) and issubclass(origin, collections.abc.Mapping):
        return {}
    if origin is tuple:
        return tuple(plausible(each) for each in get_args(base) if each is not ...)
    if origin in (list, *_CONTAINERS):
        return []
    passes_for_one: Callable[..., Any] = type("PassesForOne", (), {"__class__": property(lambda self: origin)})
    return passes_for_one()
