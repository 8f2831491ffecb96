"""Gradients of a layer's outputs, from which the fallback differentiates the layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ftrace.gradients.layouts import Examples, Layout


@dataclass(frozen=True)
class Cotangent:
    """The gradient of one output.

    Args:
        grad: In the output's shape.
        layout: Where each example's slices are. None where ``grad`` is ``[B, *shape]``: each example's gradient of an
            output that all examples share.
    """

    grad: Tensor
    layout: Layout | None

    def of_example(self, example: int, examples: Examples) -> Tensor:
        """Keep one example's gradient alone, in the output's shape."""
        if self.layout is None:
            return self.grad[example]
        if examples.count(self.layout.loader) == 1:
            return self.grad
        return self.layout.only(self.grad, examples.first(self.layout.loader) + example, examples)

    def by_example(self, examples: Examples) -> list[Tensor]:
        """Split the gradient into each example's, in the output's shape."""
        if self.layout is None:
            return list(self.grad)
        return [self.layout.only(self.grad, example, examples) for example in range(examples.total)]


def from_outside(outputs: list[Tensor], totals: Sequence[Cotangent], examples: Examples) -> list[Cotangent]:
    """Take away, from the gradient of each output, what arrives by way of the layer's other outputs.

    A layer may go on computing with one of its outputs. That output's gradient then includes what comes from inside
    of the layer, and differentiating the repeated run would count it twice.
    """
    order = sorted(range(len(outputs)), key=lambda i: _sequence_number(outputs[i]), reverse=True)
    remaining = list(totals)
    for position, later in enumerate(order):
        earlier = [i for i in order[position + 1 :] if outputs[i].requires_grad]
        if not earlier or not outputs[later].requires_grad or outputs[later].is_leaf:
            continue
        into, cotangent = [outputs[i] for i in earlier], remaining[later]
        if all(remaining[i].layout is not None for i in (later, *earlier)):
            inner = _pulled_back(outputs[later], into, cotangent.grad)
        else:  # example by example, for outputs that all examples share
            each = [_pulled_back(outputs[later], into, grad) for grad in cotangent.by_example(examples)]
            inner = [
                None if grads[0] is None else torch.stack(grads) if remaining[i].layout is None else sum(grads)
                for i, grads in zip(earlier, zip(*each, strict=True), strict=True)
            ]
        for i, grad in zip(earlier, inner, strict=True):
            if grad is not None:
                remaining[i] = replace(remaining[i], grad=remaining[i].grad - grad)
    return remaining


def _pulled_back(output: Tensor, into: list[Tensor], grad: Tensor) -> list[Any]:
    return list(torch.autograd.grad(output, into, grad, retain_graph=True, allow_unused=True))


def _sequence_number(tensor: Tensor) -> int:
    return tensor.grad_fn._sequence_nr() if tensor.grad_fn is not None else -1
