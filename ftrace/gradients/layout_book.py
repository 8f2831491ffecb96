"""The book of layouts: what is known of whose rows are whose, run by run of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ftrace.gradients.layouts import SIDE_BY_SIDE, Examples, Layout, candidates
from ftrace.gradients.names import leave_out
from ftrace.gradients.rules import Lookups


class Key(NamedTuple):
    """One output of one run of a layer.

    Args:
        path: The layer's name.
        run: Index of the run within one pass.
        output: Index of the output.
    """

    path: str
    run: int = 0
    output: int = 0


Layouts = tuple[Layout | None, ...]  # of the outputs of one node of autograd's graph; None: of one that is shared


@dataclass(frozen=True)
class Way:
    """Path through autograd's graph on which a shared output meets the examples.

    Args:
        nodes: Names of the nodes that are reached from the output, in order, up to where the examples come in.
        meetings: By index of a node at which they come in: the layouts of its outputs.
        axes: By the same index: the numbers of axes of its outputs.
        slices: Of these nodes, in order: the number of slices that each example has in each output; 0 where it is
            shared.
    """

    nodes: tuple[str, ...]
    meetings: Mapping[int, Layouts]
    axes: Mapping[int, tuple[int, ...]]
    slices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Shared:
    """Mark of an output that is computed once for all examples, such as a table of positions.

    Args:
        ways: All ways that were seen. Without any, the output is assumed to meet the examples where a tensor is as
            large as one copy per example, with these side by side.
    """

    ways: tuple[Way, ...] = ()

    def __str__(self) -> str:
        nodes = sorted({way.nodes[index] for way in self.ways for index in way.meetings})
        return f"shared by all examples, told apart at {', '.join(nodes) or 'the first copy'}"


Rows = Layout | Shared


class UnreadableError(ValueError):
    """Error about parameters whose gradients can't be divided among examples.

    Args:
        problem: The reason.
        names: Full names of the parameters; the message says how to leave them out.
        mixes: Whether examples may be mixed where these are used, so that reading them elsewhere doesn't help.
        of_all: Whether no parameter's gradient can be divided, so that leaving some out doesn't help.
    """

    def __init__(self, problem: str, names: Sequence[str] = (), *, mixes: bool = False, of_all: bool = False) -> None:
        super().__init__(f"{problem}. {leave_out(names)}" if names else problem)
        self.problem = problem
        self.names = tuple(names)
        self.mixes = mixes
        self.of_all = of_all


class LayoutBook:
    """Record of the layouts of a module's layers in one kind of pass.

    Args:
        assumes: Whether unknown layouts may be assumed to be the most common ones: rows side by side along the leading
            axis, and a table that is looked up once shared by all examples.

    Attributes:
        known: By output, its layout, or how it is shared.
        verified: Outputs whose layout was seen, and could be told from all others.
        seen: By output, the numbers of slices per example with which its layout was seen.
        ambiguous: By output, layouts that could not be told from the known one.
    """

    def __init__(self, *, assumes: bool = True) -> None:
        self.assumes = assumes
        self.known: dict[Key, Rows] = {}
        self.verified: set[Key] = set()
        self.seen: dict[Key, set[int]] = {}
        self.ambiguous: dict[Key, tuple[Layout, ...]] = {}

    def find(self, key: Key, shape: Sequence[int], examples: Examples, lookup: Lookups = "no") -> Rows | None:
        """Find whose rows an output has.

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
        """Copy the book."""
        copy = LayoutBook(assumes=self.assumes)
        copy.take(self)
        return copy

    def take(self, other: LayoutBook) -> None:
        """Replace everything that is known by what another book knows."""
        self.known, self.verified = dict(other.known), set(other.verified)
        self.seen = {key: set(seen) for key, seen in other.seen.items()}
        self.ambiguous = dict(other.ambiguous)

    def is_seen(self, key: Key, shape: Sequence[int], examples: Examples) -> bool:
        """Whether an output's rows have been seen in a shape like this.

        With one slice per example, or one block, several orders coincide. An order that was seen with two different
        numbers of slices holds for others.
        """
        known = self.known.get(key)
        if key not in self.verified or known is None or isinstance(known, Shared):
            return key in self.verified
        if examples.count(known.loader) == 1:
            return known.fits(shape, examples)
        seen = self.seen.get(key, set())
        return known.fits(shape, examples) and (
            known.slices(shape, examples) in seen or len([number for number in seen if number > 1]) > 1
        )

    def write(
        self, key: Key, layout: Layout, others: Sequence[Layout], shape: Sequence[int], examples: Examples
    ) -> None:
        """Write down the layout of an output.

        Args:
            key: The output.
            layout: The layout that agrees with the evidence.
            others: Other layouts that agree as well.
            shape: Of the output, those axes that may hold examples.
            examples: Of the batch.
        """
        known = self.known.get(key)
        seen = self.seen.setdefault(key, set())
        if isinstance(known, Layout) and known.fits(shape, examples):
            agreeing = [each for each in (layout, *others) if known.says_the_same(each, shape, examples)]
            if agreeing and others and key in self.verified:
                return
            layout = known if agreeing else layout
        if isinstance(known, Layout) and known != layout:
            seen &= {number for number in seen if known.coincides(layout, number)}
        self.known[key] = layout
        self.ambiguous[key] = tuple(others)
        if others:
            self.verified.discard(key)
        else:
            self.verified.add(key)
            if examples.count(layout.loader) > 1:
                seen.add(layout.slices(shape, examples))


def assumed(shape: Sequence[int], examples: Examples, lookup: Lookups = "no") -> Rows | None:
    """Assume the most common layout that a shape allows: rows side by side, and lookups of positions shared by all."""
    if examples.documents is not None:
        if lookup == "shared":
            return Shared()
        of_documents = next(candidates(shape, examples), None)
        return Shared() if of_documents is None and lookup == "ids" else of_documents
    if lookup == "shared" or (lookup == "ids" and _looks_shared(shape, examples)):
        return Shared()
    if SIDE_BY_SIDE.fits(shape, examples):
        return SIDE_BY_SIDE
    loaders = [Layout(loader=loader) for loader in range(len(examples.loaders))]
    fitting = [layout for layout in loaders if layout.fits(shape, examples)]
    return fitting[0] if len(fitting) == 1 else None


def _looks_shared(shape: Sequence[int], examples: Examples) -> bool:
    """Whether row numbers of that shape are those of one example: ``[1, T]``, or ``[T]``."""
    sizes = [examples.total, *examples.loaders]
    return not shape or (shape[0] not in sizes if len(shape) == 1 else shape[0] == 1 and 1 not in sizes)
