"""Hooks on autograd's graph for one backward pass through a recorded forward pass."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence

from torch import nn
from torch.autograd.graph import GradientEdge, Node
from torch.utils.hooks import RemovableHandle

from ftrace.gradients.graph import Graph, slot_of
from ftrace.gradients.layout_book import Key, Shared
from ftrace.gradients.outputs import Output, Pass
from ftrace.gradients.shared import SharedGradients


class BackwardHooks:
    """Hooks beyond those on the layers' outputs: where shared outputs meet the examples, and on parameters.

    They are removed when this object is closed, or freed: nodes and parameters may outlive it.

    Args:
        of_pass: The recorded pass.
    """

    def __init__(self, of_pass: Pass) -> None:
        self._pass = of_pass
        self._shared: SharedGradients | None = None
        self._handles: list[RemovableHandle] = []

    @property
    def unknown(self) -> Sequence[Key]:
        """Shared outputs that are used in another way than any that was seen."""
        return () if self._shared is None else self._shared.unknown

    def add_shared(
        self, outputs: Mapping[Key, Output], edges: Mapping[Key, GradientEdge], starts: Sequence[Node]
    ) -> None:
        """Find where outputs that all examples share meet the examples, and hook these nodes.

        Args:
            outputs: All outputs of the pass.
            edges: Into those that have one.
            starts: The nodes that the backward pass begins at.
        """
        rows = {key: output.rows for key, output in outputs.items()}
        shared = {key: of_output for key, of_output in rows.items() if isinstance(of_output, Shared)}
        if shared and self._pass.examples.total > 1:
            into_shared = {key: edges[key] for key in shared if key in edges}
            self._shared = SharedGradients(into_shared, shared, starts, self._pass)
            weakref.finalize(self, self._shared.close)

    def notice(self, edges: Sequence[GradientEdge], starts: Iterable[Node]) -> None:
        """Recognise the backward pass by the nodes that use parameters, which are in other passes' graphs as well.

        Args:
            edges: Into the parameters.
            starts: The nodes that the backward pass begins at.
        """
        if not edges:
            return
        graph = Graph.behind(starts)
        nodes = {node for edge in edges for node, _ in graph.consumers.get(slot_of(edge), ())}
        for node in nodes:
            self._keep(node.register_prehook(self._pass.notice))

    def add_parameters(self, parameters: Mapping[Key, nn.Parameter], outputs: Mapping[Key, Output]) -> None:
        """Hook parameters that are read off autograd's graph."""
        for key, parameter in parameters.items():
            self._keep(parameter.register_hook(outputs[key].take_gradient))

    def _keep(self, handle: RemovableHandle) -> None:
        self._handles.append(handle)
        weakref.finalize(self, handle.remove)

    def close(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._shared is not None:
            self._shared.close()
            self._shared = None
        self._pass.shared.clear()
