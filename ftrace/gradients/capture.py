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


class _Cut:
    """Lets one example's gradient through and nobody else's, while it is set to one."""

    def __init__(self, num_examples: int) -> None:
        self.num_examples = num_examples
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
    output_grad: Tensor | None = None

    def take_gradient(self, grad: Tensor) -> Tensor | None:
        """The hook on the layer's output."""
        if self.cut.example is not None:
            return self.cut.apply(grad, self.cut.example)
        self.output_grad = grad if self.output_grad is None else self.output_grad + grad
        return None


class Recording:
    """What was heard of one forward pass.

    Args:
        num_examples: Rows of the batch. A layer that gets a multiple of them (several answers a query, tokens
            flattened into rows) is taken to hold each example's rows side by side.
    """

    def __init__(self, num_examples: int) -> None:
        self.num_examples = num_examples
        self.rows = 0
        self._uses: list[_Use] = []
        self._edges: list[GradientEdge] = []
        self._cut = _Cut(num_examples)

    def add(self, layer: Layer, inputs: Tensor, output: Tensor) -> None:
        """Take note of a layer's run, and ask autograd for the gradient of its output."""
        use = _Use(layer, inputs.detach(), self._cut)
        self._uses.append(use)
        self._edges.append(get_gradient_edge(output))  # now, before anything may change the output in place
        if layer.rule.is_table:
            self.rows = inputs.shape[0]
        output.register_hook(use.take_gradient)

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
        torch.autograd.grad(losses.sum(), self._edges, allow_unused=True)  # the hooks take the gradients

    def gradients(self) -> PerExampleGradients:
        """Per-example gradients of all covered parameters that the pass has used; call after backward."""
        parts: dict[str, list[Part]] = {}
        shapes: dict[str, torch.Size] = {}
        for use in self._uses:
            if use.output_grad is None:
                continue
            names = use.layer.names
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
            yield
        finally:
            self._cut.example = None


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
        self._recording = Recording(num_examples)
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

    def _is_listening(self) -> bool:
        return self._recording is not None and torch.is_grad_enabled()

    def _record_bias(self, layer: Layer, ids: Tensor, bias: Tensor) -> None:
        assert self._recording is not None
        self._recording.add(layer, ids, bias)

    def _after_forward(
        self, layer: Layer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        recording = self._recording
        if recording is None or not output.requires_grad:
            return None
        inputs: Tensor = args[0] if args else next(iter(kwargs.values()))
        expanded = None
        if layer.rule.is_table and inputs.shape[0] == 1 and recording.num_examples > 1:
            rows = recording.rows or recording.num_examples
            inputs = inputs.expand(rows, *inputs.shape[1:])
            output = expanded = output.expand(rows, *output.shape[1:])
        if output.ndim < 2 or output.shape[0] % recording.num_examples:
            raise ValueError(
                f"layer {layer.path!r} ({type(module).__name__}) returned shape {tuple(output.shape)}: expected the "
                f"leading axis to be the batch of {recording.num_examples} examples, or a multiple of it. Per-example "
                f'gradients can\'t be read off it; leave its parameters out with parameters=("*", "!{layer.path}.*").'
            )
        recording.add(layer, inputs, output)
        return expanded


def _by_example(tensor: Tensor, num_examples: int, *, is_ids: bool = False) -> Tensor:
    """``[B * g, ..., D]`` as ``[B, T, D]``, or ids ``[B * g, ...]`` as ``[B, T]``."""
    return tensor.reshape(num_examples, -1) if is_ids else tensor.reshape(num_examples, -1, tensor.shape[-1])
