"""Finding out whose rows are whose, where each example has a loss, by differentiating some losses alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ftrace.gradients.documents import ALL
from ftrace.gradients.evidence import Choice, Evidence, Prints, choose, contradiction, cut
from ftrace.gradients.freed_memory import give_back_once_grown
from ftrace.gradients.layout_book import Key, LayoutBook, Shared, UnreadableError
from ftrace.gradients.layouts import Examples, Layout, PackedLayout, candidates
from ftrace.gradients.node_prints import NodePrints
from ftrace.gradients.outputs import Output, Pass
from ftrace.gradients.rules import GraphRule


def member_sets(examples: Examples) -> list[Tensor]:
    """Make sets of examples, ``[B]`` bool each, that together tell any two examples apart; most of them early.

    Where they are documents of packed rows, the first two sets are every other document, so that any two neighbours in
    a row are told apart in both directions.
    """
    total = examples.total
    order = torch.randperm(total, generator=torch.Generator().manual_seed(total))
    digits = [(order >> digit) % 2 == 0 for digit in range(max(1, math.ceil(math.log2(max(2, total)))))]
    every_other = torch.arange(total) % 2 == 0
    first = [every_other, ~every_other] if examples.documents is not None else []
    return [*first, *digits, *(~digit for digit in digits)]


@dataclass(frozen=True)
class Recorded:
    """The recorded outputs of a pass.

    Args:
        edges: Gradient edges into those that have a graph.
    """

    outputs: Mapping[Key, Output]
    edges: Mapping[Key, GradientEdge]
    of_pass: Pass

    @property
    def examples(self) -> Examples:
        """The examples of the batch."""
        return self.of_pass.examples

    @property
    def book(self) -> LayoutBook:
        """The book of what is known about the layouts."""
        return self.of_pass.book

    def known_edges(self) -> list[GradientEdge]:
        """List the edges into outputs of which it was seen which slices are whose."""
        outputs = [(edge, self.outputs[key]) for key, edge in self.edges.items()]
        return [edge for edge, output in outputs if output.is_seen and not isinstance(output.rows, Shared)]

    def unknown(self) -> list[Key]:
        """List the outputs of which it was not seen whose rows they have."""
        return [key for key, output in self.outputs.items() if not output.is_seen]


def learn_from_losses(recorded: Recorded, losses: Tensor, wanted: Sequence[Key]) -> None:
    """Write into the book whose rows are whose.

    Args:
        recorded: The pass, which has one loss for each example.
        losses: ``[B]``, whose graph is kept.
        wanted: The outputs to find out about.

    Raises:
        UnreadableError: If it can't be found out for an output that has a gradient.
    """
    sets = member_sets(recorded.examples)
    plain, _ = _differentiated(recorded, losses)
    evidence: dict[Key, list[Evidence]] = {key: [] for key in plain}
    choices: dict[Key, Choice] = {}
    for index, members in enumerate(sets):
        rest, _ = _differentiated(recorded, losses, members)
        for key, prints in plain.items():
            evidence[key].append(compared(cut, prints, rest.get(key), members))
        choices = {
            key: choose(recorded.outputs[key].example_axes, evidence[key], recorded.examples)
            for key in wanted
            if key in evidence
        }
        if index and not any(choice.others for choice in choices.values()):
            break
    apart = write_choices(recorded, choices)
    apart += [key for key, choice in choices.items() if not choice.known]  # a single number, say
    if apart:
        plain_nodes, *nodes = [
            _differentiated(recorded, losses, members, apart)[1] for members in (None, *sets[: index + 1])
        ]
        passes = [(members, [of_set]) for members, of_set in zip(sets, nodes, strict=False)]
        apart, _ = learn_ways(recorded, apart, [plain_nodes], passes, cut)
    if apart:
        raise unreadable([recorded.outputs[key] for key in apart])


def write_choices(recorded: Recorded, choices: Mapping[Key, Choice]) -> list[Key]:
    """Write the chosen layouts into the book.

    Returns:
        Outputs that have a gradient, and no layout.
    """
    for key, choice in choices.items():
        if choice.layout is not None:
            shape = recorded.outputs[key].example_axes
            recorded.book.write(key, choice.layout, choice.others, shape, recorded.examples)
    return [key for key, choice in choices.items() if choice.known and choice.layout is None]


def learn_ways(
    recorded: Recorded,
    keys: Sequence[Key],
    plain: Sequence[NodePrints],
    passes: Sequence[tuple[Tensor, Sequence[NodePrints]]],
    compare: Callable[[Prints, Prints, Tensor], Evidence],
) -> tuple[list[Key], set[Key]]:
    """Write into the book how outputs that have no layout are shared.

    Args:
        recorded: The pass.
        keys: The outputs.
        plain: For each backward pass of a plain pass, prints of the nodes behind these outputs.
        passes: The changed examples, and the same prints, of each pass in which some examples were changed.
        compare: Compares the prints of a plain and such a pass.

    Returns:
        The outputs for which it can't be found out, and those behind which examples were seen at all.
    """
    lost: list[Key] = []
    told: set[Key] = set()
    for index, nodes in enumerate(plain):
        others = [(members, several[index]) for members, several in passes if index < len(several)]
        layouts: dict[tuple[int, int], Layout] = {}
        seen: set[int] = set()
        is_same = all(other.names == nodes.names for _, other in others)
        if is_same:
            for slot, prints in nodes.prints.items():
                evidence = [compared(compare, prints, other.prints.get(slot), members) for members, other in others]
                choice = choose(prints.shape, evidence, recorded.examples)
                seen |= {slot[0]} if choice.known else set()
                if choice.layout is not None and not choice.others:
                    layouts[slot] = choice.layout
        for key in keys:
            if not nodes.reaches(key):
                continue
            way = nodes.way(key, layouts, recorded.examples)
            if not is_same or not seen.isdisjoint(nodes.behind(key)):
                told.add(key)
            if way is None:
                lost.append(key)
                continue
            known = recorded.book.known.get(key)
            ways = known.ways if isinstance(known, Shared) and key in recorded.book.verified else ()
            recorded.book.known[key] = Shared((*ways, way))
            recorded.book.verified.add(key)
    return list(dict.fromkeys(lost)), told


_PROBLEM = (
    "in which the examples of the batch can't be told apart: it may mix them, order them in a way of its own (which "
    "the loader should do), or be used by a term of the loss that is no example's, such as a penalty (use weight_decay)"
)


def unreadable(outputs: Sequence[Output], problem: str = _PROBLEM) -> UnreadableError:
    """Make an error that names all layers whose rows could not be told apart."""
    documents = outputs[0].of_pass.examples.documents
    if documents is not None:
        rows, tokens = documents.owners.shape
        problem += (
            f". Examples are the documents of packed rows: expected all of their tokens, [{rows}, {tokens}, ...] or "
            f"[{rows * tokens}, ...], all but the last or first of each row, or those before a label"
        )
    layers = {output.layer.path: output for output in outputs}
    first, count = next(iter(layers.values())), len(layers)
    names = list(dict.fromkeys(name for output in outputs for name in output.layer.names.values()))
    more = f", and {count - 1} more" if count > 1 else ""
    seen = "is used" if isinstance(first.layer.rule, GraphRule) else f"returned shape {tuple(first.shape)}"
    return UnreadableError(
        f"{first.called}{more} {seen} for {first.of_pass.examples.total} examples, {problem}",
        names,
        mixes=True,
    )


def refuse_crossing(outputs: Mapping[Key, Output], choices: Mapping[Key, Choice], irregular: Collection[Key]) -> None:
    """Refuse packed rows in which tokens of one document change with those of another.

    Args:
        outputs: All that were recorded.
        choices: What follows from exchanging documents, by output.
        irregular: Outputs whose shape has changed meanwhile.

    Raises:
        UnreadableError: If there is an output that holds all tokens, and no layout agrees with how they change.
    """
    for key, choice in choices.items():
        if choice.known and choice.layout is None and key not in irregular:
            layouts = candidates(outputs[key].example_axes, outputs[key].of_pass.examples)
            if any(isinstance(layout, PackedLayout) and layout.part == ALL for layout in layouts):
                raise _crossing(outputs[key])


def _crossing(output: Output) -> UnreadableError:
    return UnreadableError(
        f"{output.called} has tokens of one document that change with another document's: attention, or another layer "
        "over tokens, crosses the documents of a packed row, so that none has a gradient of its own. Keep them apart: "
        "a Hugging Face model that builds its masks from position_ids, which begin anew with each document, needs "
        "use_cache=False (as model.config.use_cache) and no attention_mask; any other one needs a block-diagonal mask. "
        "Or give one id for each row, which is the example then",
        of_all=True,
    )


def padded(outputs: Sequence[Output]) -> UnreadableError:
    """Make an error about packed rows in which tokens of no document have a gradient."""
    return UnreadableError(
        f"{outputs[0].called} has a gradient at tokens of no document (negative document_ids, 0 in attention_mask, or "
        "after a row's last document), so contributions would not sum to the gradient. Count these tokens to a "
        "document, or take them out of the loss, with labels of -100",
        of_all=True,
    )


def compared(
    compare: Callable[[Prints, Prints, Tensor], Evidence], plain: Prints, other: Prints | None, members: Tensor
) -> Evidence:
    """Compare a tensor's prints with those of another pass, where it may be missing, or have another shape."""
    if other is None:
        return compare(plain, nothing_like(plain), members)
    return compare(plain, other, members) if other.shape == plain.shape else contradiction(plain.shape, members)


def nothing_like(prints: Prints) -> Prints:
    """Make the prints of a tensor of zeros, of the same shape."""
    along = {axis: torch.zeros_like(numbers) for axis, numbers in prints.along.items()}
    return Prints(prints.shape, along, prints.precision)


def _differentiated(
    recorded: Recorded, losses: Tensor, members: Tensor | None = None, behind: Sequence[Key] = ()
) -> tuple[dict[Key, Prints], NodePrints]:
    """Differentiate all, or some examples', losses: take prints of all outputs' gradients, and of nodes behind some."""
    give_back_once_grown()
    known = recorded.known_edges()
    starts = [] if losses.grad_fn is None else [losses.grad_fn]
    edges = {key: recorded.edges[key] for key in behind}
    nodes = NodePrints(edges, starts if behind else [], known, recorded.examples.documents)
    weights = torch.ones_like(losses) if members is None else members.to(losses)
    prints: dict[Key, Prints] = {}
    recorded.of_pass.prints = prints
    try:
        torch.autograd.grad(losses, list(recorded.edges.values()), weights, allow_unused=True, retain_graph=True)
    finally:
        recorded.of_pass.prints = None
        nodes.close()
    return prints, nodes
