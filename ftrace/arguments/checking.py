"""Arguments held against their annotations: one line says which is wrong, before anything is computed."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import numbers
import operator
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ftrace.arguments.kinds import LISTED, NotEmpty, Within, in_words, is_container

T = TypeVar("T", bound=Callable[..., Any])
_SURROGATES = re.compile("[\ud800-\udfff]")
_PLAIN = (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, range, type(None), type)


class _Misfit(Exception):
    """A value that isn't of its kind.

    Args:
        place: Where in the argument, such as "[3]".
        is_near: Whether its type is right and only its range is wrong, so that other types need no mention.
    """

    def __init__(self, place: str, expected: str, value: Any, *, is_near: bool = False) -> None:
        self.place, self.expected, self.value, self.is_near = place, expected, value, is_near


def checked(function: T) -> T:
    """Let a function or class refuse arguments that aren't what their annotations say.

    Integers and floats of other libraries become Python's own. A truth value is no number, a float is no integer, a
    text is no list, and NaN and infinity are no numbers. Of other libraries' classes, also what behaves like one
    is taken, but no number, text or list.

    Raises:
        ValueError: When it is called with a wrong argument, which the message names.

    Example:
        >>> from ftrace.arguments import Positive
        >>> @checked
        ... def best(k: Positive, kinds: collections.abc.Sequence[str] = ()) -> int:
        ...     return k
        >>> best(k=0)
        Traceback (most recent call last):
        ValueError: k: expected at least 1, found 0
    """
    if inspect.isclass(function):
        function.__init__ = _checking(function.__init__, function if is_dataclass(function) else function.__init__)  # type: ignore[method-assign]
        return cast(T, function)
    return _checking(function, function)


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Hold arguments against a function's annotations from inside of it, where it can't be :func:`checked`.

    Args:
        arguments: By name; others are ignored.

    Raises:
        ValueError: If one is wrong.
    """
    for name, kind in _kinds_of(function).items():
        if name in arguments:
            hold(name, arguments[name], kind)


def _kinds_of(annotated: Any) -> dict[str, Any]:
    """Return the annotations of a function's arguments, or of a dataclass's fields."""
    if inspect.isclass(annotated):
        return get_type_hints(annotated, include_extras=True)
    of_arguments = {name: kind for name, kind in annotated.__annotations__.items() if name != "return"}
    holder = types.SimpleNamespace(__annotations__=of_arguments)
    return get_type_hints(holder, inspect.unwrap(annotated).__globals__, include_extras=True)


def _checking(called: T, annotated: Any) -> T:
    signature = inspect.signature(called)

    @functools.cache  # only when it is called do all names in annotations exist
    def kinds() -> dict[str, Any]:
        return _kinds_of(annotated)

    @functools.wraps(called)
    def checking(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return called(*args, **kwargs)  # which says what is missing, or unknown
        for name, value in bound.arguments.items():
            kind = kinds().get(name, Any)
            parameter = signature.parameters[name].kind
            if parameter is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(hold(name, each, kind) for each in value)
            elif parameter is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = {key: hold(key, each, kind) for key, each in value.items()}
            else:
                bound.arguments[name] = hold(name, value, kind)
        return called(*bound.args, **bound.kwargs)

    return cast(T, checking)


def hold(name: str, value: Any, kind: Any) -> Any:
    """Return a value, with its numbers as Python's own, if it is of a kind.

    Args:
        name: Of the argument, for the message.
        kind: An annotation.

    Raises:
        ValueError: If it isn't.
    """
    try:
        return _fit(value, kind)
    except _Misfit as misfit:
        found = re.sub(r"\s+", " ", _shown(misfit.value))
        raise ValueError(f"{name}{misfit.place}: expected {misfit.expected}, found {found}") from None


def _fit(value: Any, kind: Any) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        return _within(value, *get_args(kind))
    if origin in (Union, types.UnionType):
        return _any_of(value, get_args(kind))
    if origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in get_args(kind)):
            return value
        raise _Misfit("", in_words(kind), value)
    if kind in (None, type(None)):
        return _if(value is None, value, type(None))
    if kind in (bool, int, float, str) or kind is Path:
        return _plain(value, kind)
    if kind is collections.abc.Callable or origin is collections.abc.Callable:
        return _if(callable(value), value, kind)
    container = origin or kind
    if not inspect.isclass(container) or container is object or getattr(container, "_is_protocol", False):
        return _container(value, kind) if is_container(container) else value
    if is_container(container):
        return _container(value, kind)
    if origin is not type and not container.__module__.startswith("ftrace."):
        # What behaves like a class of another library, such as a wrapped model or a user's own loader, passes.
        return _if(isinstance(value, container) or not isinstance(value, _PLAIN), value, kind)
    return _if(isinstance(value, type if origin is type else container), value, kind)


def _if(is_right: bool, value: Any, kind: Any) -> Any:
    if not is_right:
        raise _Misfit("", in_words(kind), value)
    return value


def _within(value: Any, kind: Any, *limits: Any) -> Any:
    try:
        value = _fit(value, kind)
    except _Misfit as misfit:
        if misfit.place:
            raise
        raise _Misfit("", in_words(Annotated[kind, *limits]), value, is_near=misfit.is_near) from None
    for limit in limits:
        if isinstance(limit, Within) and limit.refuses(value):
            raise _Misfit("", limit.bounds, value, is_near=True)
        if isinstance(limit, NotEmpty) and limit.refuses(value):
            raise _Misfit("", in_words(Annotated[kind, limit]), value)
    return value


def _any_of(value: Any, kinds: tuple[Any, ...]) -> Any:
    misfits = []
    for kind in kinds:
        try:
            return _fit(value, kind)
        except _Misfit as misfit:
            misfits.append(misfit)
    nearest = max(misfits, key=lambda misfit: (len(misfit.place), misfit.is_near))
    if nearest.place or nearest.is_near:
        raise nearest
    raise _Misfit("", " or ".join(map(in_words, kinds)), value)


def _plain(value: Any, kind: Any) -> Any:
    is_truth = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    if kind is bool:
        return bool(_if(is_truth and getattr(value, "ndim", 0) == 0, value, kind))
    if kind is str:
        if isinstance(value, str) and _SURROGATES.search(value):
            raise _Misfit("", "UTF-8", value)
        return _if(isinstance(value, str), value, kind)
    if kind is Path:
        return Path(_if(isinstance(value, str | os.PathLike) and "\0" not in os.fspath(value), value, kind))
    if kind is int:
        try:
            return operator.index(_if(not is_truth, value, kind))
        except TypeError:
            raise _Misfit("", in_words(kind), value) from None
    _if(isinstance(value, numbers.Real) and not is_truth, value, kind)
    if not _is_finite(value):
        raise _Misfit("", in_words(kind), value, is_near=True)
    return value if type(value) in (int, float) else float(value)


def _is_finite(value: numbers.Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no floating point number reaches
        return False


def _container(value: Any, kind: Any) -> Any:
    """Return a list or mapping whose elements are of the kinds that it says; other classes' elements aren't read."""
    container, of = get_origin(kind) or kind, get_args(kind)
    if issubclass(container, Mapping):
        _if(isinstance(value, Mapping), value, kind)
        if len(of) != 2 or type(value) is not dict:
            return value
        return {_at(f"[{key!r:.40}]", key, of[0]): _at(f"[{key!r:.40}]", each, of[1]) for key, each in value.items()}
    is_ordered = container in (list, tuple) or issubclass(container, collections.abc.Sequence)
    is_listed = hasattr(value, "__len__" if is_ordered else "__iter__")
    is_iterator = issubclass(container, Iterator) or container is collections.abc.Generator
    if is_iterator or not issubclass(container, collections.abc.Iterable):
        return _if(isinstance(value, container), value, kind)
    is_wrong = isinstance(value, str | bytes) or (is_ordered and isinstance(value, Mapping | set | frozenset))
    _if(is_listed and not is_wrong and not inspect.isclass(value), value, kind)
    if is_ordered and not hasattr(value, "__getitem__"):
        raise _Misfit("", in_words(kind), value)
    if not of or type(value) not in LISTED or of[0] is Any:
        return value
    if container is tuple and of[-1] is not Ellipsis:
        _if(len(value) == len(of), value, kind)
        return tuple(_at(f"[{place}]", each, one) for place, (each, one) in enumerate(zip(value, of, strict=True)))
    takes_all = of[0] is int or (get_origin(of[0]) in (Union, types.UnionType) and int in get_args(of[0]))
    if takes_all and set(map(type, value)) <= {int}:
        return value  # long lists of ids
    return type(value)(_at(f"[{place}]", each, of[0]) for place, each in enumerate(value))


def _at(place: str, value: Any, kind: Any) -> Any:
    try:
        return _fit(value, kind)
    except _Misfit as misfit:
        raise _Misfit(place + misfit.place, misfit.expected, misfit.value, is_near=misfit.is_near) from None


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value!r:.80}"
