"""Per-example gradients of what a model computes once for all of its examples, such as a table of positions.

The gradient of such a tensor is a sum over the examples, so no hook on it can tell them apart. Further down they are
apart still: where the tensor meets the examples (is added to ``[B, T, D]``, expanded, concatenated, multiplied), the
node of autograd's graph is given the gradient of what both make together, and each example's slice of it, sent through
that node alone, is that example's own gradient of the shared tensor. From there it is taken through the nodes that lie
between, example by example, until it arrives at the layer. The user's own pass is only watched: each node is run
beside itself, and what it returns to autograd is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.utils.hooks import RemovableHandle

from ftrace.gradients.evidence import Prints, prints_of
from ftrace.gradients.layout_book import Key, Layouts, Shared, Way
from ftrace.gradients.layouts import SIDE_BY_SIDE, Examples, Layout
from ftrace.gradients.outputs import Pass, exclusively

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
            slices = tuple(_slices(shapes_of(node), layouts, examples) for node, layouts in found.meetings.items())
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


def _slices(shapes: Sequence[torch.Size], layouts: Layouts, examples: Examples) -> tuple[int, ...]:
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


class SharedGradients:
    """Each example's own gradient of the shared outputs of one pass.

    Args:
        outputs: The edge into each shared output.
        rows: How each is shared.
        starts: The ends of the graph.
        of_pass: Gets the gradients, ``[B, *shape]``, by key, before the hooks of the layers' own outputs run.

    Attributes:
        unknown: Outputs that are used in another way than any that was seen.
    """

    def __init__(
        self, outputs: Mapping[Key, GradientEdge], rows: Mapping[Key, Shared], starts: Iterable[Node], of_pass: Pass
    ) -> None:
        self._pass = of_pass
        self._gathered: dict[Slot, Tensor] = {}
        self._keys: dict[Slot, list[Key]] = {}
        self._handles: list[RemovableHandle] = []
        self.unknown: list[Key] = []
        graph = Graph.behind(starts)
        meetings: dict[Node, Layouts] = {}
        inputs: dict[Node, set[int]] = {}
        for key, edge in outputs.items():
            found = follow_known(slot_of(edge), graph, rows[key], of_pass.examples)
            if found is None:
                self.unknown.append(key)
                continue
            self._keys.setdefault(slot_of(edge), []).append(key)
            meetings |= found.meetings
            for node, places in found.inputs.items():
                inputs.setdefault(node, set()).update(places)
        for node, places in inputs.items():
            layouts = meetings.get(node, (None,) * len(node._input_metadata))
            self._handles.append(node.register_prehook(self._hook(node, layouts, sorted(places))))

    def close(self) -> None:
        """Remove the hooks, which know their nodes: without this, neither is ever freed."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._gathered.clear()
        self._keys.clear()

    def _hook(self, node: Node, layouts: Layouts, inputs: Sequence[int]) -> Callable[..., Any]:
        def before_node(grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
            if _is_beside_itself:
                return None
            if self._pass.chosen is not None:
                return self._cut(grads, layouts)
            if self._pass.prints is None:
                with torch.no_grad():
                    self._pass_on(node, layouts, inputs, grads)
            return None

        return before_node

    def _cut(self, grads: tuple[Tensor | None, ...], layouts: Layouts) -> tuple[Tensor | None, ...] | None:
        if not any(layouts):
            return None
        chosen, examples = self._pass.chosen, self._pass.examples
        assert chosen is not None
        return tuple(
            grad if grad is None or layout is None else layout.choose(grad, chosen, examples)
            for grad, layout in zip(grads, layouts, strict=True)
        )

    def _pass_on(self, node: Node, layouts: Layouts, inputs: Sequence[int], grads: tuple[Tensor | None, ...]) -> None:
        """Send each example's share of a node's gradients through the node."""
        examples = self._pass.examples
        shared = {n: self._gathered.pop((node, n)) for n in range(len(grads)) if (node, n) in self._gathered}
        given = [grad for n, grad in enumerate(grads) if grad is not None and (n in shared or layouts[n] is not None)]
        if not given:
            return
        self._pass.rounding = max(self._pass.rounding, *(torch.finfo(grad.dtype).eps for grad in given))
        targets: dict[int, Slot] = {}
        for place in inputs:
            source, number = node.next_functions[place]
            if source is not None:
                targets[place] = source, number
        found = None if shared or len(grads) > 1 else _all_at_once(node, layouts[0], targets, grads[0], examples)
        if found is None:
            rows = [
                _run(node, [self._share(n, example, grads, layouts, shared) for n in range(len(grads))], targets)
                for example in range(examples.total)
            ]
            found = {place: torch.stack([row[place] for row in rows]) for place in targets}
        for place, own in found.items():
            slot = targets[place]
            self._gathered[slot] = self._gathered[slot] + own if slot in self._gathered else own
            for key in self._keys.get(slot, ()):
                self._pass.shared[key] = self._gathered[slot]

    def _share(
        self,
        number: int,
        example: int,
        grads: Sequence[Tensor | None],
        layouts: Layouts,
        shared: Mapping[int, Tensor],
    ) -> Tensor | None:
        grad, layout = grads[number], layouts[number]
        if number in shared:
            return shared[number][example]
        if grad is None or layout is None:
            return None
        return layout.only(grad, example, self._pass.examples)


def _all_at_once(
    node: Node, layout: Layout | None, targets: Mapping[int, Slot], grad: Tensor | None, examples: Examples
) -> dict[int, Tensor] | None:
    """Through a node that works element by element, and leaves it to autograd to add up what was broadcast."""
    if grad is None or layout is None or layout.group is not None or not _is_native(node):
        return None
    given = [grad] * (1 + max(targets)) if node.name() == "ExpandBackward0" else _call(node, [grad])
    found = {}
    for place, target in targets.items():
        own = given[place]
        if own is None or own.shape != grad.shape or own.numel() <= shape_of(target).numel():
            return None
        summed = _summed_to(layout.split(own, examples), shape_of(target))
        if summed is None:
            return None
        found[place] = summed.to(target[0]._input_metadata[target[1]].dtype)
    return found


def _summed_to(rows: Tensor, shape: torch.Size) -> Tensor | None:
    """``[B, ...]`` added up over what was broadcast to it, ``[B, *shape]``; None where it was something else."""
    extra = rows.ndim - 1 - len(shape)
    if extra < 0:
        return None
    if extra:
        rows = rows.sum(tuple(range(1, 1 + extra)))
    broadcast = [axis + 1 for axis, length in enumerate(shape) if length == 1 and rows.shape[axis + 1] != 1]
    if broadcast:
        rows = rows.sum(broadcast, keepdim=True)
    return rows if rows.shape[1:] == shape else None


def _is_native(node: Node) -> bool:
    """Whether a node is autograd's own, and not a ``torch.autograd.Function``."""
    return not isinstance(node, torch.autograd.function.BackwardCFunction)


class _Beside(torch.autograd.Function):
    """Runs a node within a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, run: Callable[[], None]) -> Tensor:
        ctx.run = run
        return start.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.run()
        return grads[0], None


_SAVING: dict[str, bool] = {}


def _saves_tensors(node: Node) -> bool:
    if node.name() not in _SAVING:
        _SAVING[node.name()] = any(name.startswith("_raw_saved_") for name in dir(node))
    return _SAVING[node.name()]


def _call(node: Any, grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """What a node makes of gradients, before autograd adds up what was broadcast.

    Activation checkpointing hands out what a node has saved once in a backward pass, so another pass is begun for it.
    """
    found: list[Any] = []
    if _saves_tensors(node):
        with torch.enable_grad():
            leaf = torch.zeros((), requires_grad=True)
            end: Any = _Beside.apply(leaf, lambda: found.append(node(*grads)))
        end.backward()  # not torch.autograd.grad, in which nodes do nothing that isn't asked for
    else:
        found.append(node(*grads))
    return found[0] if isinstance(found[0], tuple) else (found[0],)


def _run(node: Node, grads: Sequence[Tensor | None], targets: Mapping[int, Slot]) -> dict[int, Tensor]:
    """Gradients of some of a node's inputs, in their own shapes and dtypes."""
    like = next(grad for grad in grads if grad is not None)
    given: Mapping[int, Tensor | None]
    if _is_native(node):
        given = dict(enumerate(_call(node, grads)))
    elif node.name() == "RegisterPostBackwardFunctionBackward":  # of FSDP: hands gradients on, and begins to reduce
        given = dict(enumerate([None, *grads]))
    else:
        outputs = [GradientEdge(node, number) for number, grad in enumerate(grads) if grad is not None]
        edges = [GradientEdge(*target) for target in targets.values()]
        known = [grad for grad in grads if grad is not None]
        with exclusively(-1), _beside_itself():
            several = torch.autograd.grad(outputs, edges, known, retain_graph=True, allow_unused=True)
        given = dict(zip(targets, several, strict=True))
    found = {}
    for place, target in targets.items():
        own, metadata = given[place], target[0]._input_metadata[target[1]]
        if own is None:
            found[place] = torch.zeros(torch.Size(metadata.shape), dtype=metadata.dtype, device=like.device)
        else:
            found[place] = own.sum_to_size(torch.Size(metadata.shape)).to(metadata.dtype)
    return found


_is_beside_itself = False


@contextmanager
def _beside_itself() -> Iterator[None]:
    """While active, a node of the user's is being run by itself, and hooks of this file are deaf."""
    global _is_beside_itself
    _is_beside_itself = True
    try:
        yield
    finally:
        _is_beside_itself = False


class NodePrints:
    """Prints of the gradients that come to the nodes behind outputs that may be shared.

    Args:
        outputs: The edges into these outputs.
        starts: The ends of the graph.
        known: Edges behind which nobody needs to look: of outputs whose examples are known.

    Attributes:
        names: Of the nodes, in the order in which they were come upon.
        prints: By node, and which of its outputs.
    """

    def __init__(
        self, outputs: Mapping[Key, GradientEdge], starts: Iterable[Node], known: Iterable[GradientEdge]
    ) -> None:
        self.names: list[str] = []
        self.prints: dict[tuple[int, int], Prints] = {}
        self._handles: list[RemovableHandle] = []
        self._numbers: dict[Node, int] = {}
        self._shapes: list[list[torch.Size]] = []
        self._used_by: dict[tuple[int, int], list[int]] = {}
        self._first: dict[Key, list[int]] = {}
        self._ends: set[int] = set()
        graph, known_nodes = Graph.behind(starts), {edge.node for edge in known}
        for key, edge in outputs.items():
            self._first[key] = self._visit(slot_of(edge), graph, known_nodes)

    def _visit(self, start: Slot, graph: Graph, known_nodes: set[Node]) -> list[int]:
        waiting: list[tuple[Slot, list[int]]] = [(start, [])]
        first = waiting[0][1]
        while waiting:
            slot, into = waiting.pop(0)
            for node, _ in graph.consumers.get(slot, ()):
                is_new = node not in self._numbers
                number = self._numbers.setdefault(node, len(self._numbers))
                into.append(number)
                if not is_new:
                    continue
                outputs = len(node._input_metadata)
                self.names.append(node.name())
                self._shapes.append(shapes_of(node))
                if node in graph.starts:
                    self._ends.add(number)
                self._handles.append(node.register_prehook(self._hook(number)))
                for output in range(0 if node in known_nodes else outputs):
                    waiting.append(((node, output), self._used_by.setdefault((number, output), [])))
        return first

    def _hook(self, number: int) -> Callable[..., None]:
        def before_node(grads: tuple[Tensor | None, ...]) -> None:
            for output, grad in enumerate(grads):
                if grad is not None:
                    self.prints[number, output] = prints_of(grad)

        return before_node

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._numbers.clear()

    def reaches(self, key: Key) -> bool:
        """Whether any gradient has come to a shared output."""
        return any(
            (number, output) in self.prints
            for number in self._first[key]
            for output in range(len(self._shapes[number]))
        )

    def behind(self, key: Key) -> set[int]:
        """All nodes that a shared output is come upon at, or behind."""
        seen: set[int] = set()
        waiting = list(self._first[key])
        while waiting:
            number = waiting.pop()
            if number not in seen:
                seen.add(number)
                for output in range(len(self._shapes[number])):
                    waiting += self._used_by.get((number, output), [])
        return seen

    def way(self, key: Key, layouts: Mapping[tuple[int, int], Layout], examples: Examples) -> Way | None:
        """How a shared output meets the examples.

        Args:
            key: The output.
            layouts: Of those outputs of nodes whose examples could be told apart.
            examples: Of the batch.

        Returns:
            None if some of its gradient comes on a way without any.
        """
        nodes: list[str] = []
        meetings: dict[int, Layouts] = {}
        axes: dict[int, tuple[int, ...]] = {}
        slices: list[tuple[int, ...]] = []
        seen: set[int] = set()
        waiting = [self._first[key]]
        while waiting:
            for number in waiting.pop(0):
                if number in seen:
                    continue
                seen.add(number)
                outputs = range(len(self._shapes[number]))
                own = tuple(layouts.get((number, output)) for output in outputs)
                if any(own):
                    meetings[len(nodes)] = own
                    axes[len(nodes)] = tuple(len(shape) for shape in self._shapes[number])
                    slices.append(_slices(self._shapes[number], own, examples))
                nodes.append(self.names[number])
                for output in outputs:
                    if own[output] is None:
                        used_by = self._used_by.get((number, output), [])
                        if not used_by and number in self._ends:
                            return None
                        waiting.append(used_by)
        return Way(tuple(nodes), meetings, axes, tuple(slices)) if meetings else None
