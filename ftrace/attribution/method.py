"""The interface of attribution methods: a name, options, and one function from a task to a score store."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from ftrace.attribution.task import Task
from ftrace.gradients import nearest
from ftrace.scores import ScoreStore


class AttributionMethod(ABC):
    """A way to score training examples for queries: ``ftrace attribute --method NAME``.

    A subclass takes its options as typed arguments of ``__init__``, keeps each under its own name (as a dataclass
    does), and has a short ``name``. Anybody's subclass can be named by its class path.
    """

    name: ClassVar[str]
    renamed_options: ClassVar[Mapping[str, str]] = {}
    """From old names of options, which still work, to new ones."""

    @abstractmethod
    def score(self, task: Task) -> ScoreStore:
        """Score the task's examples for its queries.

        Args:
            task: What to score, on what, and where to.

        Returns:
            The store, in the task's output folder.

        Raises:
            ValueError: If the method's options and the task don't fit.
        """

    def options(self) -> dict[str, Any]:
        """Give the options as JSON holds them."""
        names = [name for name in inspect.signature(type(self)).parameters if name not in self.renamed_options]
        return {name: _plain(getattr(self, name)) for name in names}


def known_methods() -> dict[str, type[AttributionMethod]]:
    """Find all methods that have been imported, by their short names."""
    kinds = _subclasses(AttributionMethod)  # type: ignore[type-abstract]
    return {kind.name: kind for kind in kinds if not inspect.isabstract(kind) and hasattr(kind, "name")}


def find_method(name: str) -> type[AttributionMethod]:
    """Find a method by its short name.

    Raises:
        ValueError: If there is none.

    Example:
        >>> find_method("bm25").name
        'bm25'
    """
    known = known_methods()
    if name not in known:
        raise ValueError(
            f"method: expected a known name or a class path such as my_package.MyMethod, found {name!r}. "
            + nearest(name, known)
        )
    return known[name]


def _subclasses(kind: type[AttributionMethod]) -> Iterator[type[AttributionMethod]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, str | int | float | list | dict | None) else str(value)
