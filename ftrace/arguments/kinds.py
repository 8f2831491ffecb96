"""What arguments may be: ranges of numbers, and annotations in words."""

from __future__ import annotations

import collections.abc
import inspect
import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

LISTED = (list, tuple, set, frozenset)
_WORDS = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "none", Path: "a path",
    Any: "anything",
}  # fmt: skip


@dataclass(frozen=True)
class Within:
    """The range of a number.

    Args:
        least: The smallest, or what it must be above.
        most: The largest; default: any.
        above: Whether ``least`` itself is excluded.
    """

    least: float
    most: float | None = None
    above: bool = False

    def refuses(self, value: Any) -> bool:
        """Whether a number is outside."""
        is_low = value <= self.least if self.above else value < self.least
        return is_low or (self.most is not None and value > self.most)

    @property
    def bounds(self) -> str:
        """The range by itself, which says enough of a number that is outside."""
        if self.above:
            return f"a number above {self.least:,}" + ("" if self.most is None else f", up to {self.most:,}")
        return f"at least {self.least:,}" if self.most is None else f"{self.least:,} to {self.most:,}"

    def __repr__(self) -> str:
        if self.above:
            return self.bounds.removeprefix("a number ")
        return f"of {self.bounds}" if self.most is None else f"from {self.bounds}"


@dataclass(frozen=True)
class NotEmpty:
    """A text, or a list, with something in it."""

    def refuses(self, value: Any) -> bool:
        """Whether it is empty, or a text with a null byte, which no name of a file may have."""
        if isinstance(value, str):
            return not value.strip() or "\0" in value
        return isinstance(value, Collection) and not len(value)

    def __repr__(self) -> str:
        return "that is not empty"


Positive = Annotated[int, Within(1)]
Count = Annotated[int, Within(0)]
Seed = Annotated[int, Within(0, 2**32 - 1)]
Share = Annotated[float, Within(0, 1)]
PositiveNumber = Annotated[float, Within(0, above=True)]
NonNegativeNumber = Annotated[float, Within(0)]
Name = Annotated[str, NotEmpty()]


def in_words(kind: Any) -> str:
    """Return what an annotation says, in words.

    Example:
        >>> in_words(Positive | None)
        'a whole number of at least 1 or none'
    """
    origin, of = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return " ".join([in_words(of[0]), *(repr(limit) for limit in of[1:] if isinstance(limit, Within | NotEmpty))])
    if origin in (Union, types.UnionType):
        return " or ".join(map(in_words, of))
    if origin is Literal:
        return repr(of[0]) if len(of) == 1 else f"one of {list(of)}"
    if kind in _WORDS:
        return _WORDS[kind]
    container = origin or kind
    if container is collections.abc.Callable:
        return "a function"
    if is_container(container):
        if issubclass(container, Mapping):
            return f"a mapping ({' to '.join(map(in_words, of))})" if of else "a mapping"
        inner = dict.fromkeys(in_words(each) for each in of if each not in (Any, Ellipsis))
        return f"a list (each {' and '.join(inner)})" if inner else "a list"
    name = str(getattr(container, "__name__", container))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def is_container(container: Any) -> bool:
    """Return whether a class is a list or mapping, whose elements are held against its arguments."""
    return inspect.isclass(container) and (
        container in LISTED or container is dict or container.__module__ == "collections.abc"
    )
