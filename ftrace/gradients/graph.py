"""Autograd's graph, followed from an output that all examples share to where it meets the examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch.autograd.graph import GradientEdge, Node

from ftrace.gradients.layout_book import Layouts, Shared, Way
from ftrace.gradients.layouts import SIDE_BY_SIDE, Examples

Slot = tuple[Node, int]  # one output of a node
Consumers = dict[Slot, list[Slot]]  # the nodes that use it, and as which of their inputs


def find_consumers(starts: Iterable[Node]) -> Consumers:
    """Find, for each output of each node of a graph, the nodes that use it.

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
        for index, (source, number) in enumerate(node.next_functions):
            if source is not None:
                consumers.setdefault((source, number), []).append((node, index))
                waiting.append(source)
    return consumers


def kind_of_graph(starts: Iterable[Node]) -> int:
    """Hash the operations that a graph is made of, in order: equal for graphs of one kind."""
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
    """Get the output that a gradient edge leads to."""
    return edge.node, edge.output_nr


def shape_of(slot: Slot) -> torch.Size:
    """Get the shape of one output of a node."""
    return torch.Size(slot[0]._input_metadata[slot[1]].shape)


def shapes_of(node: Node) -> list[torch.Size]:
    """Get the shapes of all outputs of a node."""
    return [torch.Size(metadata.shape) for metadata in node._input_metadata]


def axes_of(node: Node) -> tuple[int, ...]:
    """Get the number of axes of each of a node's outputs."""
    return tuple(len(shape) for shape in shapes_of(node))


@dataclass
class Graph:
    """Graph of autograd, with its edges reversed.

    Args:
        starts: The nodes that a backward pass begins at.
        consumers: Of each output of each node.
    """

    starts: set[Node]
    consumers: Consumers

    @classmethod
    def behind(cls, starts: Iterable[Node]) -> Graph:
        """Collect everything that some nodes were computed from."""
        nodes = set(starts)
        return cls(nodes, find_consumers(nodes))


@dataclass
class Followed:
    """The nodes between a shared output and the examples.

    Attributes:
        nodes: In the order in which they were reached.
        meetings: Nodes at which the examples come in, with the layouts of their outputs.
        inputs: For each node, the indices of its inputs that are shared.
        is_complete: Whether no path leads to the end of the graph without meeting an example.
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
        decide: ``(index, node, slot) -> `` the layouts of the outputs of a node that was reached from that slot, where
            examples come in; None where it is shared as well.
    """
    followed = Followed()
    seen: set[Node] = set()
    waiting = [start]
    while waiting:
        slot = waiting.pop(0)
        consumers = graph.consumers.get(slot, ())
        if not consumers and slot[0] in graph.starts:
            followed.is_complete = False
        for node, index in consumers:
            followed.inputs.setdefault(node, set()).add(index)
            if node in seen:
                continue
            seen.add(node)
            layouts = decide(len(followed.nodes), node, slot)
            followed.nodes.append(node)
            if node.name() == "CheckpointFunctionBackward":  # reentrant: it can't be run on its own
                followed.is_complete = False
            if layouts is not None:
                followed.meetings[node] = layouts
            numbers = range(len(node._input_metadata))
            waiting += [(node, n) for n in numbers if layouts is None or layouts[n] is None]
    return followed


def follow_known(start: Slot, graph: Graph, rows: Shared, examples: Examples) -> Followed | None:
    """Follow a shared output along a known way; None if it is used in none of the ways that were seen."""

    def by_size(index: int, node: Node, slot: Slot) -> Layouts | None:
        if len(node._input_metadata) != 1:
            return None
        shape = shape_of((node, 0))
        grown = shape.numel() >= examples.total * shape_of(slot).numel()
        return (SIDE_BY_SIDE,) if grown and SIDE_BY_SIDE.fits(shape, examples) else None

    if not rows.ways:
        followed = follow(start, graph, by_size)
        return followed if followed.is_complete else None
    similar: list[tuple[Way, Followed]] = []
    for way in rows.ways:

        def by_way(index: int, node: Node, slot: Slot, way: Way = way) -> Layouts | None:
            return way.meetings.get(index) if way.axes.get(index) == axes_of(node) else None

        followed = follow(start, graph, by_way)
        names = tuple(node.name() for node in followed.nodes)
        if followed.is_complete and names == way.nodes and _fit(followed, examples):
            meetings = followed.meetings.items()
            slices = tuple(slices_of(shapes_of(node), layouts, examples) for node, layouts in meetings)
            if slices == way.slices:
                return followed
            similar.append((way, followed))
    # With one slice per example, or one block, several orders coincide. An order that was seen with two different
    # numbers of slices holds for others.
    similar = [
        (way, followed) for way, followed in similar if any(number > 1 for numbers in way.slices for number in numbers)
    ]
    for way, followed in similar:
        if sum(other.meetings == way.meetings for other, _ in similar) > 1:
            return followed
    return None


def slices_of(shapes: Sequence[torch.Size], layouts: Layouts, examples: Examples) -> tuple[int, ...]:
    """Count the slices that each example has in each output of a node."""
    return tuple(
        0 if layout is None else layout.slices(shape, examples) for shape, layout in zip(shapes, layouts, strict=True)
    )


def _fit(followed: Followed, examples: Examples) -> bool:
    return all(
        layout is None or layout.fits(shape_of((node, number)), examples)
        for node, layouts in followed.meetings.items()
        for number, layout in enumerate(layouts)
    )
