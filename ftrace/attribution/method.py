"""The interface of attribution methods: a name, options, and one function from a task to a score store.

Parsers of commands read the options off the classes, so the files of ftrace's own methods import no torch, not even for
types, which parsers import too: what scores is imported when it does.
"""

# Annotations here aren't postponed: parsers would evaluate them in the files of subclasses, which lack their names.

import difflib
import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ftrace.scores import ScoreStore

if TYPE_CHECKING:
    from ftrace.attribution.task import Task as Task
else:
    Task = Any  # its file imports torch; at run time nothing needs more than a name for annotations

# Files of ftrace's own methods.
_MODULES = ("bm25", "dense", "embed", "ensemble", "random_target", "tracin", "trackstar")


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
    """Find ftrace's own methods, and all others that have been imported, by their short names."""
    for module in _MODULES:
        importlib.import_module(f"ftrace.attribution.{module}")
    kinds = _subclasses(AttributionMethod)  # type: ignore[type-abstract]
    return {kind.name: kind for kind in kinds if not inspect.isabstract(kind) and hasattr(kind, "name")}


def describe_methods() -> dict[str, str]:
    """Give the first line of the docstring of each of :func:`known_methods`."""
    return {name: (kind.__doc__ or "").partition("\n")[0] for name, kind in known_methods().items()}


def find_method(name: str) -> type[AttributionMethod]:
    """Find a method by its short name, or the name of its class.

    Raises:
        ValueError: If there is none.

    Example:
        >>> find_method("bm25").name
        'bm25'
    """
    methods = known_methods()
    known = {**methods, **{kind.__name__: kind for kind in methods.values()}}
    if name not in known:
        near = " or ".join(map(repr, difflib.get_close_matches(name, methods)))
        raise ValueError(
            f"method: expected a known name or a class path such as my_package.MyMethod, found {name!r}. "
            + (f"Did you mean {near}?" if near else f"There are: {', '.join(map(repr, methods))}.")
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
