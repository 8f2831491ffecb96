"""Autograd's graph, seen from its inputs: where an output that all examples share meets the examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch.autograd.graph import GradientEdge, Node

from ftrace.gradients.layout_book import Layouts, Shared, Way
from ftrace.gradients.layouts import SIDE_BY_SIDE, Examples

Slot = tuple[Node, int]  # one output of a node
Consumers = dict[Slot, list[Slot]]  # who has used it: nodes, and as which of their inputs


def find_consumers(starts: Iterable[Node]) -> Consumers:
    """For each output of each node of a graph, the nodes that have used it.

    Args:
        starts: The graph's ends, such as the loss's node.
    """
    consumers: Consumers = {}
    seen: set[Node] = set()
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        for place, (source, number) in enumerate(node.next_functions):
            if source is not None:
                consumers.setdefault((source, number), []).append((node, place))
                waiting.append(source)
    return consumers


def kind_of_graph(starts: Iterable[Node]) -> int:
    """A number for the operations that a graph is made of, in order: the same for graphs of one kind."""
    names: list[str] = []
    seen: set[Node] = set()
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            names.append(node.name())
            waiting += [source for source, _ in node.next_functions if source is not None]
    return hash(tuple(names))


def slot_of(edge: GradientEdge) -> Slot:
    """Where a gradient edge leads to."""
    return edge.node, edge.output_nr


def shape_of(slot: Slot) -> torch.Size:
    """The shape of one output of a node."""
    return torch.Size(slot[0]._input_metadata[slot[1]].shape)


def shapes_of(node: Node) -> list[torch.Size]:
    """The shapes of all outputs of a node."""
    return [torch.Size(metadata.shape) for metadata in node._input_metadata]


def axes_of(node: Node) -> tuple[int, ...]:
    """How many axes each of a node's outputs has."""
    return tuple(len(shape) for shape in shapes_of(node))


@dataclass
class Graph:
    """A graph of autograd's, as it is seen from its inputs.

    Args:
        starts: Where a backward pass begins.
        consumers: Of each output of each node.
    """

    starts: set[Node]
    consumers: Consumers

    @classmethod
    def behind(cls, starts: Iterable[Node]) -> Graph:
        """All that some nodes were computed from."""
        nodes = set(starts)
        return cls(nodes, find_consumers(nodes))


@dataclass
class Followed:
    """The nodes between a shared output and the examples.

    Attributes:
        nodes: In the order in which they were come upon.
        meetings: Those at which the examples come in, with the layouts of their outputs.
        inputs: For each node, those of its inputs that are shared.
        is_complete: Whether no way leads to the end of the graph without meeting an example.
    """

    nodes: list[Node] = field(default_factory=list)
    meetings: dict[Node, Layouts] = field(default_factory=dict)
    inputs: dict[Node, set[int]] = field(default_factory=dict)
    is_complete: bool = True


def follow(start: Slot, graph: Graph, decide: Callable[[int, Node, Slot], Layouts | None]) -> Followed:
    """Follow a shared output to the examples.

    Args:
        start: The output.
        graph: Of the pass.
        decide: ``(index, node, slot) -> `` the layouts of the outputs of a node that was come upon by that slot, where
            examples come in; None where it is shared as well.
    """
    found = Followed()
    seen: set[Node] = set()
    waiting = [start]
    while waiting:
        slot = waiting.pop(0)
        consumers = graph.consumers.get(slot, ())
        if not consumers and slot[0] in graph.starts:
            found.is_complete = False
        for node, place in consumers:
            found.inputs.setdefault(node, set()).add(place)
            if node in seen:
                continue
            seen.add(node)
            layouts = decide(len(found.nodes), node, slot)
            found.nodes.append(node)
            if node.name() == "CheckpointFunctionBackward":  # reentrant: it can't be run beside itself
                found.is_complete = False
            if layouts is not None:
                found.meetings[node] = layouts
            numbers = range(len(node._input_metadata))
            waiting += [(node, n) for n in numbers if layouts is None or layouts[n] is None]
    return found


def follow_known(start: Slot, graph: Graph, rows: Shared, examples: Examples) -> Followed | None:
    """Follow a shared output by what is known of it; None if it is used in none of the ways that were seen."""

    def by_size(index: int, node: Node, slot: Slot) -> Layouts | None:
        if len(node._input_metadata) != 1:
            return None
        shape = shape_of((node, 0))
        grown = shape.numel() >= examples.total * shape_of(slot).numel()
        return (SIDE_BY_SIDE,) if grown and SIDE_BY_SIDE.fits(shape, examples) else None

    if not rows.ways:
        found = follow(start, graph, by_size)
        return found if found.is_complete else None
    similar: list[tuple[Way, Followed]] = []
    for way in rows.ways:

        def by_way(index: int, node: Node, slot: Slot, way: Way = way) -> Layouts | None:
            return way.meetings.get(index) if way.axes.get(index) == axes_of(node) else None

        found = follow(start, graph, by_way)
        if found.is_complete and tuple(node.name() for node in found.nodes) == way.nodes and _fit(found, examples):
            slices = tuple(slices_of(shapes_of(node), layouts, examples) for node, layouts in found.meetings.items())
            if slices == way.slices:
                return found
            similar.append((way, found))
    # With one slice an example, or one block, several orders are one. What was seen with two numbers holds for others.
    similar = [
        (way, found) for way, found in similar if any(number > 1 for numbers in way.slices for number in numbers)
    ]
    for way, found in similar:
        if sum(other.meetings == way.meetings for other, _ in similar) > 1:
            return found
    return None


def slices_of(shapes: Sequence[torch.Size], layouts: Layouts, examples: Examples) -> tuple[int, ...]:
    """Of each output of a node, how many slices each example has."""
    return tuple(
        0 if layout is None else layout.slices(shape, examples) for shape, layout in zip(shapes, layouts, strict=True)
    )


def _fit(found: Followed, examples: Examples) -> bool:
    return all(
        layout is None or layout.fits(shape_of((node, number)), examples)
        for node, layouts in found.meetings.items()
        for number, layout in enumerate(layouts)
    )
