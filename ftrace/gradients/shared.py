"""Per-example gradients of tensors that a model computes once for all of its examples, such as a table of positions.

The gradient of such a tensor is a sum over the examples, so no hook on it can tell them apart. Closer to the loss they
are still apart: where the tensor meets the examples (is added to ``[B, T, D]``, expanded, concatenated, multiplied),
the node of autograd's graph gets the gradient of its output, and each example's slice of that, sent through the node
alone, gives this example's gradient of the shared tensor. From there it is sent through the nodes in between, example
by example, until it arrives at the layer. The user's pass is only watched: each node is run once more on its own, and
what it returns to autograd is unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.utils.hooks import RemovableHandle

from ftrace.gradients.graph import Graph, Slot, follow_known, shape_of, slot_of
from ftrace.gradients.layout_book import Key, Layouts, Shared
from ftrace.gradients.layouts import Examples, Layout, PackedLayout
from ftrace.gradients.outputs import Pass, exclusively
from ftrace.gradients.rounding import coarsest_eps


class SharedGradients:
    """Hooks that compute each example's gradient of the shared outputs of one pass.

    Args:
        outputs: The edge into each shared output.
        rows: How each is shared.
        starts: The ends of the graph.
        of_pass: The pass, whose ``shared`` gets the gradients, ``[B, *shape]``, by key, before the hooks on the layers'
            outputs run.

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
            followed = follow_known(slot_of(edge), graph, rows[key], of_pass.examples)
            if followed is None:
                self.unknown.append(key)
                continue
            self._keys.setdefault(slot_of(edge), []).append(key)
            meetings |= followed.meetings
            for node, indices in followed.inputs.items():
                inputs.setdefault(node, set()).update(indices)
        for node, indices in inputs.items():
            layouts = meetings.get(node, (None,) * len(node._input_metadata))
            self._handles.append(node.register_prehook(self._hook(node, layouts, sorted(indices))))

    def close(self) -> None:
        """Remove the hooks. They refer to their nodes, so otherwise neither is ever freed."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._gathered.clear()
        self._keys.clear()

    def _hook(self, node: Node, layouts: Layouts, inputs: Sequence[int]) -> Callable[..., Any]:
        def before_node(grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
            if _is_running_node:
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
        """Send each example's slice of a node's gradients through the node."""
        examples = self._pass.examples
        shared = {n: self._gathered.pop((node, n)) for n in range(len(grads)) if (node, n) in self._gathered}
        given = [grad for n, grad in enumerate(grads) if grad is not None and (n in shared or layouts[n] is not None)]
        if not given:
            return
        self._pass.rounding = max(self._pass.rounding, coarsest_eps(grad.dtype for grad in given))
        targets: dict[int, Slot] = {}
        for index in inputs:
            source, number = node.next_functions[index]
            if source is not None:
                targets[index] = source, number
        of_inputs = None
        if len(shared) == len(given):
            of_inputs = _gathered_at_once(node, [shared.get(n) for n in range(len(grads))], targets)
        elif len(grads) == 1:
            of_inputs = _all_at_once(node, layouts[0], targets, grads[0], examples)
        if of_inputs is None:
            rows = [
                _run(node, [self._slice(n, example, grads, layouts, shared) for n in range(len(grads))], targets)
                for example in range(examples.total)
            ]
            of_inputs = {index: torch.stack([row[index] for row in rows]) for index in targets}
        for index, by_example in of_inputs.items():
            if by_example.numel():
                largest = by_example.abs().amax()
                previous = self._pass.largest
                self._pass.largest = largest if previous is None else torch.maximum(previous, largest.to(previous))
            slot = targets[index]
            self._gathered[slot] = self._gathered[slot] + by_example if slot in self._gathered else by_example
            for key in self._keys.get(slot, ()):
                self._pass.shared[key] = self._gathered[slot]

    def _slice(
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
    """Send all examples through a node at once, if it works elementwise and leaves broadcast sums to autograd."""
    if grad is None or layout is None or layout.loader is not None or not _is_native(node):
        return None
    if isinstance(layout, PackedLayout):  # documents laid out by themselves have not the tensor's axes
        return None
    given = [grad] * (1 + max(targets)) if node.name() == "ExpandBackward0" else _call(node, [grad])
    of_inputs = {}
    for index, target in targets.items():
        of_input = given[index]
        if of_input is None or of_input.shape != grad.shape or of_input.numel() <= shape_of(target).numel():
            return None
        summed = _summed_to(layout.split(of_input, examples), shape_of(target))
        if summed is None:
            return None
        of_inputs[index] = summed.to(target[0]._input_metadata[target[1]].dtype)
    return of_inputs


# Nodes that save tensors, but compute element by element, so that another axis before all others makes no difference.
_ELEMENTWISE = frozenset({"WhereBackward0", "MulBackward0", "DivBackward0", "MaskedFillBackward0"})


def _gathered_at_once(
    node: Node, gathered: Sequence[Tensor | None], targets: Mapping[int, Slot]
) -> dict[int, Tensor] | None:
    """Send all examples' gradients of shared outputs, ``[B, *shape]``, through a node at once; None if that fails."""
    if not _is_native(node):
        return None
    if node.name() in _ELEMENTWISE:
        return _in_shapes_of(targets, dict(enumerate(_call(node, gathered))), gathered)
    if _saves_tensors(node):  # to unpack them may run a user's code, which knows nothing of batched tensors
        return None
    all_given = {n: grad for n, grad in enumerate(gathered) if grad is not None}
    reached: list[int] = []

    def run(*rows: Tensor) -> list[Tensor]:
        known = dict(zip(all_given, rows, strict=True))
        of_inputs = _call(node, [known.get(n) for n in range(len(gathered))])
        reached[:] = [index for index in targets if of_inputs[index] is not None]
        return [of_inputs[index] for index in reached]  # type: ignore[misc]

    try:
        with _only_batched_operators():
            rows = torch.vmap(run)(*all_given.values())
    except RuntimeError:  # an operator that has no form for batches
        return None
    return _in_shapes_of(targets, dict(zip(reached, rows, strict=True)), gathered)


@contextmanager
def _only_batched_operators() -> Iterator[None]:
    """Let ``torch.vmap`` fail where it would loop over the rows, with a warning that the user can do nothing about."""
    functorch: Any = torch._C._functorch
    before = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(before)


def _in_shapes_of(
    targets: Mapping[int, Slot], given: Mapping[int, Tensor | None], gathered: Sequence[Tensor | None]
) -> dict[int, Tensor] | None:
    """Add gradients up over broadcast axes, to ``[B, *shape]`` of each input; 0 where there is none."""
    like = next(grad for grad in gathered if grad is not None)
    of_inputs = {}
    for index, (source, number) in targets.items():
        metadata, rows = source._input_metadata[number], given.get(index)
        if rows is None:
            of_inputs[index] = like.new_zeros(len(like), *metadata.shape, dtype=metadata.dtype)
            continue
        summed = _summed_to(rows, torch.Size(metadata.shape))
        if summed is None:
            return None
        of_inputs[index] = summed.to(metadata.dtype)
    return of_inputs


def _summed_to(rows: Tensor, shape: torch.Size) -> Tensor | None:
    """Add ``[B, ...]`` up over broadcast axes, to ``[B, *shape]``; None where shapes differ in another way."""
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
    """Whether a node is built into autograd, and not a ``torch.autograd.Function``."""
    return not isinstance(node, torch.autograd.function.BackwardCFunction)


class _InBackward(torch.autograd.Function):
    """Function that runs a node within another backward pass."""

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
    """Run a node on gradients; its results are those before autograd adds them up over broadcast axes.

    Activation checkpointing gives out a node's saved tensors once in a backward pass, so another pass is started.
    """
    results: list[Any] = []
    if _saves_tensors(node):
        with torch.enable_grad():
            leaf = torch.zeros((), requires_grad=True)
            end: Any = _InBackward.apply(leaf, lambda: results.append(node(*grads)))
        end.backward()  # not torch.autograd.grad, in which nodes compute only the requested gradients
    else:
        results.append(node(*grads))
    return results[0] if isinstance(results[0], tuple) else (results[0],)


def _run(node: Node, grads: Sequence[Tensor | None], targets: Mapping[int, Slot]) -> dict[int, Tensor]:
    """Compute the gradients of some of a node's inputs, in the inputs' shapes and dtypes."""
    like = next(grad for grad in grads if grad is not None)
    given: Mapping[int, Tensor | None]
    if _is_native(node):
        given = dict(enumerate(_call(node, grads)))
    elif node.name() == "RegisterPostBackwardFunctionBackward":  # of FSDP: passes gradients on, and starts reducing
        given = dict(enumerate([None, *grads]))
    else:
        outputs = [GradientEdge(node, number) for number, grad in enumerate(grads) if grad is not None]
        edges = [GradientEdge(*target) for target in targets.values()]
        known = [grad for grad in grads if grad is not None]
        with exclusively(-1), _running_node():
            several = torch.autograd.grad(outputs, edges, known, retain_graph=True, allow_unused=True)
        given = dict(zip(targets, several, strict=True))
    of_inputs = {}
    for index, target in targets.items():
        of_input, metadata = given[index], target[0]._input_metadata[target[1]]
        if of_input is None:
            of_inputs[index] = torch.zeros(torch.Size(metadata.shape), dtype=metadata.dtype, device=like.device)
        else:
            of_inputs[index] = of_input.sum_to_size(torch.Size(metadata.shape)).to(metadata.dtype)
    return of_inputs


_is_running_node = False


@contextmanager
def _running_node() -> Iterator[None]:
    """Mark that a node of the user's graph is being run on its own: the hooks of this file do nothing meanwhile."""
    global _is_running_node
    _is_running_node = True
    try:
        yield
    finally:
        _is_running_node = False
