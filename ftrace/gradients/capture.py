"""Listening to a module: from an ordinary forward and backward pass to per-example gradients.

Hooks read each layer's input and the gradient of its output. Nothing is added to the computation but expansions of
tensors that the model shares between examples (position tables), which leave trained weights bit-identical.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from ftrace.gradients import relative_position_bias
from ftrace.gradients.coverage import Coverage, Layer, find_coverage
from ftrace.gradients.parts import Part
from ftrace.gradients.per_example import PerExampleGradients
from ftrace.gradients.rules import find_rule

# The capture whose own passes are under way, if any: others on the same model must be deaf to them. An id rather than
# the object, since autograd's graph gets to hold what compares itself with it.
_exclusive: int | None = None


class _Cut:
    """Lets one example's gradient through and nobody else's, while it is set to one."""

    def __init__(self, num_examples: int, capture: int) -> None:
        self.num_examples = num_examples
        self.capture = capture
        self.example: int | None = None

    def apply(self, grad: Tensor, example: int) -> Tensor:
        group = grad.shape[0] // self.num_examples
        rows = slice(example * group, (example + 1) * group)
        masked = torch.zeros_like(grad)
        masked[rows] = grad[rows]
        return masked


@dataclass
class _Use:
    """One run of one layer: its input, and once backward has passed, the gradient of its output.

    Autograd's graph holds this object, so it must hold nothing of the graph: such a circle is never freed.
    """

    layer: Layer
    inputs: Tensor
    cut: _Cut
    refusal: str | None = None
    output_grad: Tensor | None = None

    def take_gradient(self, grad: Tensor) -> Tensor | None:
        """The hook on the layer's output."""
        if _exclusive not in (None, self.cut.capture):
            return None
        if self.refusal is not None:
            raise ValueError(self.refusal)
        if self.cut.example is not None:
            return self.cut.apply(grad, self.cut.example)
        self.output_grad = grad if self.output_grad is None else self.output_grad + grad
        return None


class Recording:
    """What was heard of one forward pass.

    Args:
        num_examples: Rows of the batch. A layer that gets a multiple of them (several answers a query, tokens
            flattened into rows) is taken to hold each example's rows side by side.
        capture: Id of the capture that listens.

    Attributes:
        rows: Rows that the model's last lookup had: what a table of positions, looked up once, is expanded to.
    """

    def __init__(self, num_examples: int, capture: int) -> None:
        self.num_examples = num_examples
        self.rows = num_examples
        self._uses: list[_Use] = []
        self._edges: list[GradientEdge] = []
        self._cut = _Cut(num_examples, capture)

    def add(self, layer: Layer, inputs: Tensor, output: Tensor) -> None:
        """Take note of a layer's run, and ask autograd for the gradient of its output."""
        use = _Use(layer, inputs.detach(), self._cut, self._refusal(layer, output))
        self._uses.append(use)
        self._edges.append(get_gradient_edge(output))  # now, before anything may change the output in place
        output.register_hook(use.take_gradient)

    def _refusal(self, layer: Layer, output: Tensor) -> str | None:
        """Why a layer's gradient can't be taken apart; an error only if it ever gets a gradient."""
        if output.ndim >= 2 and output.shape[0] % self.num_examples == 0:
            return None
        return (
            f"layer {layer.path!r} ({type(layer.module).__name__}) returned shape {tuple(output.shape)}: expected the "
            f"leading axis to be the batch of {self.num_examples} examples, or a multiple of it. Per-example gradients "
            f'can\'t be read off it; leave its parameters out with parameters=("*", "!{layer.path}.*").'
        )

    def backward(self, losses: Tensor) -> None:
        """Differentiate one loss per example with respect to layer outputs only: no weight gradient is computed.

        Args:
            losses: ``[num_examples]``.

        Raises:
            ValueError: If there is not one loss per example.
        """
        if losses.shape != (self.num_examples,):
            raise ValueError(
                f"expected one loss per example, a tensor of shape ({self.num_examples},), found {tuple(losses.shape)}"
            )
        if not self._edges:  # nothing that is covered was used
            return
        torch.autograd.grad(losses.sum(), self._edges, allow_unused=True)  # the hooks take the gradients

    def gradients(self) -> PerExampleGradients:
        """Per-example gradients of all covered parameters that the pass has used; call after backward."""
        parts: dict[str, list[Part]] = {}
        shapes: dict[str, torch.Size] = {}
        for use in self._uses:
            if use.output_grad is None:
                continue
            names = {n: full for n, full in use.layer.names.items() if getattr(use.layer.module, n).requires_grad}
            if not names:
                continue
            rule = use.layer.rule
            x = _by_example(use.inputs, self.num_examples, is_ids=rule.is_table)
            grad = _by_example(use.output_grad.movedim(rule.channel_axis, -1), self.num_examples)
            for local, part in rule.parts(use.layer.module, x, grad, names).items():
                parts.setdefault(names[local], []).append(part)
                shapes[names[local]] = getattr(use.layer.module, local).shape
        return PerExampleGradients(parts, shapes, self.num_examples)

    @contextmanager
    def just(self, example: int) -> Iterator[None]:
        """While active, backward passes through the recorded layers carry one example's gradient and nobody else's.

        This is what makes ordinary autograd an oracle for a single example inside the user's own batch and loss.
        """
        self._cut.example = example
        try:
            with _exclusively(self._cut.capture):
                yield
        finally:
            self._cut.example = None


@contextmanager
def _exclusively(capture: int) -> Iterator[None]:
    global _exclusive
    before, _exclusive = _exclusive, capture
    try:
        yield
    finally:
        _exclusive = before


class GradientCapture:
    """Per-example gradients of a module, by hooks.

    Args:
        module: Any module whose layers get the batch as their leading axis.
        patterns: Globs over parameter names (see :func:`find_coverage`).
        optimized: Parameters that the optimizer changes; default: all that require a gradient.

    Attributes:
        coverage: What became of each parameter.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> capture = GradientCapture(model)
        >>> with capture, capture.recording(num_examples=2) as recording:
        ...     recording.backward(model(torch.ones(2, 3)).squeeze(1).square())
        >>> recording.gradients().dense("0.weight").shape
        torch.Size([2, 4, 3])
    """

    def __init__(
        self, module: nn.Module, patterns: Sequence[str] = ("*",), optimized: Collection[nn.Parameter] | None = None
    ) -> None:
        self.module = module
        self.coverage: Coverage = find_coverage(module, patterns, optimized)
        self._recording: Recording | None = None
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Register the hooks. They do nothing until a recording is started."""
        for layer in self.coverage.layers:
            if layer.rule is relative_position_bias.RELATIVE_POSITION_BIAS:
                record = partial(self._record_bias, layer)
                handles = relative_position_bias.listen(self.module, layer.module, record, self._is_listening)
                self._handles.extend(handles)
            else:
                hook = partial(self._after_forward, layer)
                # First of all hooks: the gradient must be that of the layer's own output, not of a user's edit of it.
                self._handles.append(layer.module.register_forward_hook(hook, with_kwargs=True, prepend=True))
        for table in _lookup_tables(self.module):
            self._handles.append(table.register_forward_pre_hook(self._count_rows, with_kwargs=True))

    def detach(self) -> None:
        """Remove the hooks; the module is as it was."""
        self.stop()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> GradientCapture:
        self.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def start(self, num_examples: int) -> Recording:
        """Listen to the forward passes from here on, as of one batch of examples."""
        self._recording = Recording(num_examples, id(self))
        return self._recording

    def stop(self) -> None:
        """Listen no more; what was recorded can still be differentiated."""
        self._recording = None

    @contextmanager
    def recording(self, num_examples: int) -> Iterator[Recording]:
        """Listen to the forward passes inside the block, then go back to whatever was listened to before."""
        outer = self._recording
        try:
            yield self.start(num_examples)
        finally:
            self._recording = outer

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """For passes of one's own over a model that others may listen to as well: they don't hear the block."""
        with _exclusively(id(self)):
            yield

    def _is_listening(self) -> bool:
        return self._recording is not None and torch.is_grad_enabled() and _exclusive in (None, id(self))

    def _count_rows(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = _first(args, kwargs)
        if self._recording is not None and self._is_listening() and ids.shape[0] > 1:
            self._recording.rows = ids.shape[0]

    def _record_bias(self, layer: Layer, ids: Tensor, bias: Tensor) -> None:
        assert self._recording is not None
        self._recording.add(layer, ids, bias)

    def _after_forward(
        self, layer: Layer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        recording = self._recording
        if recording is None or not self._is_listening() or not output.requires_grad:
            return None
        inputs = _first(args, kwargs)
        expanded = None
        if layer.rule.is_table and inputs.shape[0] == 1 and recording.num_examples > 1:
            inputs = inputs.expand(recording.rows, *inputs.shape[1:])
            output = expanded = output.expand(recording.rows, *output.shape[1:])
        recording.add(layer, inputs, output)
        return expanded


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A layer's input."""
    first: Tensor = args[0] if args else next(iter(kwargs.values()))
    return first


def _lookup_tables(module: nn.Module) -> list[nn.Module]:
    """Tables that ids are looked up in, covered or not; not those of relative positions, which have no batch axis."""
    biases = relative_position_bias.find_tables(module)
    rules = {layer: find_rule(layer) for layer in module.modules() if layer not in biases}
    return [layer for layer, rule in rules.items() if rule is not None and rule.is_table]


def _by_example(tensor: Tensor, num_examples: int, *, is_ids: bool = False) -> Tensor:
    """``[B * g, ..., D]`` as ``[B, T, D]``, or ids ``[B * g, ...]`` as ``[B, T]``."""
    return tensor.reshape(num_examples, -1) if is_ids else tensor.reshape(num_examples, -1, tensor.shape[-1])
