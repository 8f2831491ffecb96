"""The interface of attribution methods: a name, options, and one function from a task to a score store."""

from __future__ import annotations

import difflib
import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ftrace.scores import ScoreStore

if TYPE_CHECKING:
    from ftrace.attribution.task import Task

# By short name: where ftrace's own method is, and the first line of its docstring. It is imported when it is chosen.
METHODS = {
    "bm25": (
        "ftrace.attribution.bm25.Bm25",
        "BM25 (the formula of rank_bm25.BM25Plus): words that an example and a query share.",
    ),
    "dense": (
        "ftrace.attribution.dense.Dense",
        "Dense retrieval: cosine of the embeddings of sentences with their answers filled in.",
    ),
    "embed": (
        "ftrace.attribution.embed.Embed",
        "Cosine of mean hidden states at one snapshot; each layer is a kind of scores, all from one pass.",
    ),
    "ensemble": ("ftrace.attribution.ensemble.Ensemble", "Mean of scores of finished stores."),
    "random-target": (
        "ftrace.attribution.random_target.RandomTarget",
        "Examples with the query's target first, in random order, then all others in random order.",
    ),
    "tracin": (
        "ftrace.attribution.tracin.TracIn",
        "Inner products or cosines of the gradients of an example's and a query's loss, over snapshots.",
    ),
    "trackstar": (
        "ftrace.attribution.trackstar.TrackStar",
        "Cosines of gradients that are divided by the optimizer's second moments, projected and whitened, at one "
        "snapshot.",
    ),
}


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
    for path, _ in METHODS.values():
        _class_at(path)
    return _imported()


def describe_methods() -> dict[str, str]:
    """Give the first line of the docstring of each of :func:`known_methods`, without importing ftrace's own."""
    imported = {name: (kind.__doc__ or "").partition("\n")[0] for name, kind in _imported().items()}
    return {name: line for name, (_, line) in METHODS.items()} | imported


def _imported() -> dict[str, type[AttributionMethod]]:
    kinds = _subclasses(AttributionMethod)  # type: ignore[type-abstract]
    return {kind.name: kind for kind in kinds if not inspect.isabstract(kind) and hasattr(kind, "name")}


def find_method(name: str) -> type[AttributionMethod]:
    """Find a method by its short name, or the name of its class.

    Raises:
        ValueError: If there is none.

    Example:
        >>> find_method("bm25").name
        'bm25'
    """
    for short, (path, _) in METHODS.items():
        if name in (short, path.rpartition(".")[2]):
            return _class_at(path)
    known = {**_imported(), **{kind.__name__: kind for kind in _imported().values()}}
    if name not in known:
        names = list(describe_methods())
        near = " or ".join(map(repr, difflib.get_close_matches(name, names)))
        raise ValueError(
            f"method: expected a known name or a class path such as my_package.MyMethod, found {name!r}. "
            + (f"Did you mean {near}?" if near else f"There are: {', '.join(map(repr, names))}.")
        )
    return known[name]


def _class_at(path: str) -> type[AttributionMethod]:
    module, _, name = path.rpartition(".")
    found: type[AttributionMethod] = getattr(importlib.import_module(module), name)
    return found


def _subclasses(kind: type[AttributionMethod]) -> Iterator[type[AttributionMethod]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, str | int | float | list | dict | None) else str(value)
