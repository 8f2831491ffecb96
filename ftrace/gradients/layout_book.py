"""What is known of whose rows are whose, run by run of each layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ftrace.gradients.layouts import SIDE_BY_SIDE, Examples, Layout
from ftrace.gradients.rules import Lookups


class Key(NamedTuple):
    """One output of one run of a layer.

    Args:
        path: The layer's name.
        run: Which of its runs in one pass.
        output: Which of its outputs.
    """

    path: str
    run: int = 0
    output: int = 0


Layouts = tuple[Layout | None, ...]  # of the outputs of one node of autograd's graph; None: of one that is shared


@dataclass(frozen=True)
class Way:
    """How a shared output meets the examples.

    Args:
        nodes: Names of the nodes of autograd's graph that are come upon from the output, in order, up to where the
            examples come in.
        meetings: By index of such a node: the layouts of what it returned.
    """

    nodes: tuple[str, ...]
    meetings: Mapping[int, Layouts]


@dataclass(frozen=True)
class Shared:
    """An output that is computed once for all examples, such as a table of positions.

    Args:
        ways: All ways that were seen. Where there is none, it is taken to meet the examples where a tensor is as large
            as one copy an example, with these side by side.
    """

    ways: tuple[Way, ...] = ()

    def __str__(self) -> str:
        nodes = sorted({way.nodes[index] for way in self.ways for index in way.meetings})
        return f"shared by all examples, told apart at {', '.join(nodes) or 'the first copy'}"


Rows = Layout | Shared


class UnreadableError(ValueError):
    """A layer's gradient can't be taken apart.

    Args:
        message: What is wrong, and what to do.
        names: Full names of the parameters that can't be read.
    """

    def __init__(self, message: str, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.names = tuple(names)


class LayoutBook:
    """What is known of a module's layers in one kind of pass.

    Args:
        assumes: Whether what is not known may be taken for the usual: rows side by side along the leading axis, a
            table that is looked up once shared by all examples.

    Attributes:
        known: By output.
        verified: Those of which something has been seen.
        ambiguous: Layouts that could not be told from the one that is known.
    """

    def __init__(self, *, assumes: bool = True) -> None:
        self.assumes = assumes
        self.known: dict[Key, Rows] = {}
        self.verified: set[Key] = set()
        self.ambiguous: dict[Key, tuple[Layout, ...]] = {}

    def find(self, key: Key, shape: Sequence[int], examples: Examples, lookup: Lookups = "no") -> Rows | None:
        """Whose rows an output has.

        Args:
            key: The output.
            shape: Its shape, without features.
            examples: Of the batch.
            lookup: Whether it comes from row numbers.

        Returns:
            None where that is not known.
        """
        known = self.known.get(key)
        if isinstance(known, Shared) or (known is not None and known.fits(shape, examples)):
            return known
        if examples.total == 1:
            return SIDE_BY_SIDE
        return assumed(shape, examples, lookup) if self.assumes and known is None else None

    def copy(self) -> LayoutBook:
        """Another book that says the same."""
        made = LayoutBook(assumes=self.assumes)
        made.take(self)
        return made

    def forget(self, keys: Iterable[Key]) -> None:
        """Know nothing of some outputs any more."""
        for key in keys:
            self.known.pop(key, None)
            self.verified.discard(key)

    def take(self, other: LayoutBook) -> None:
        """Know from here on what another book knows."""
        self.known, self.verified = dict(other.known), set(other.verified)
        self.ambiguous = dict(other.ambiguous)

    def is_known(self, key: Key, shape: Sequence[int], examples: Examples) -> bool:
        """Whether an output's rows have been found out."""
        known = self.known.get(key)
        return isinstance(known, Shared) or (known is not None and known.fits(shape, examples))


def assumed(shape: Sequence[int], examples: Examples, lookup: Lookups = "no") -> Rows | None:
    """The usual, where a shape allows for it: rows side by side, and lookups of positions shared by all examples."""
    if lookup == "shared" or (lookup == "ids" and _looks_shared(shape, examples)):
        return Shared()
    if SIDE_BY_SIDE.fits(shape, examples):
        return SIDE_BY_SIDE
    groups = [Layout(group=group) for group in range(len(examples.groups))]
    fitting = [layout for layout in groups if layout.fits(shape, examples)]
    return fitting[0] if len(fitting) == 1 else None


def _looks_shared(shape: Sequence[int], examples: Examples) -> bool:
    """Whether row numbers of that shape are those of one example: ``[1, T]``, or ``[T]``."""
    sizes = [examples.total, *examples.groups]
    return not shape or (shape[0] not in sizes if len(shape) == 1 else shape[0] == 1 and 1 not in sizes)
