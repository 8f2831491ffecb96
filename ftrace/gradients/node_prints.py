"""Prints of the gradients that arrive at the nodes of autograd's graph, by which shared outputs are understood."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.utils.hooks import RemovableHandle

from ftrace.gradients.documents import Documents
from ftrace.gradients.evidence import Prints, prints_of
from ftrace.gradients.graph import Graph, Slot, shapes_of, slices_of, slot_of
from ftrace.gradients.layout_book import Key, Layouts, Way
from ftrace.gradients.layouts import Examples, Layout


class NodePrints:
    """Prints of the gradients that arrive at the nodes behind outputs that may be shared.

    Args:
        outputs: The edges into these outputs.
        starts: The ends of the graph.
        known: Edges into outputs whose examples are known: the search stops there.
        documents: Those of packed rows, if any.

    Attributes:
        names: Of the nodes, in the order in which they were reached.
        prints: By node, and index of its output.
    """

    def __init__(
        self,
        outputs: Mapping[Key, GradientEdge],
        starts: Iterable[Node],
        known: Iterable[GradientEdge],
        documents: Documents | None = None,
    ) -> None:
        self.names: list[str] = []
        self._documents = documents
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
                    self.prints[number, output] = prints_of(grad, documents=self._documents)

        return before_node

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._numbers.clear()

    def reaches(self, key: Key) -> bool:
        """Whether any gradient has arrived at a shared output."""
        return any(
            (number, output) in self.prints
            for number in self._first.get(key, ())
            for output in range(len(self._shapes[number]))
        )

    def behind(self, key: Key) -> set[int]:
        """Find all nodes that are reached from a shared output."""
        seen: set[int] = set()
        waiting = list(self._first.get(key, ()))
        while waiting:
            number = waiting.pop()
            if number not in seen:
                seen.add(number)
                for output in range(len(self._shapes[number])):
                    waiting += self._used_by.get((number, output), [])
        return seen

    def way(self, key: Key, layouts: Mapping[tuple[int, int], Layout], examples: Examples) -> Way | None:
        """Find the way on which a shared output meets the examples.

        Args:
            key: The output.
            layouts: Of those outputs of nodes whose examples could be told apart.
            examples: Of the batch.

        Returns:
            None if some of its gradient arrives on a path without any of these.
        """
        nodes: list[str] = []
        meetings: dict[int, Layouts] = {}
        axes: dict[int, tuple[int, ...]] = {}
        slices: list[tuple[int, ...]] = []
        seen: set[int] = set()
        waiting = [self._first.get(key, [])]
        while waiting:
            for number in waiting.pop(0):
                if number in seen:
                    continue
                seen.add(number)
                outputs = range(len(self._shapes[number]))
                of_node = tuple(layouts.get((number, output)) for output in outputs)
                if any(of_node):
                    meetings[len(nodes)] = of_node
                    axes[len(nodes)] = tuple(len(shape) for shape in self._shapes[number])
                    slices.append(slices_of(self._shapes[number], of_node, examples))
                nodes.append(self.names[number])
                for output in outputs:
                    if of_node[output] is None:
                        used_by = self._used_by.get((number, output), [])
                        if not used_by and number in self._ends:
                            return None
                        waiting.append(used_by)
        return Way(tuple(nodes), meetings, axes, tuple(slices)) if meetings else None
