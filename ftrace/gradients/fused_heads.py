"""Fused heads: functions of hidden states and a head's weight that return log-probabilities, and never the logits.

They use the weight outside of the head's own forward, so hooks on the head see nothing. What calls such a function
tells :func:`record_head`. The gradient of the log-probabilities is then turned into that of the logits, of which the
weight's gradient is a product with the hidden states, as in any linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ftrace.gradients.coverage import Layer
from ftrace.gradients.layouts import Layout, by_example
from ftrace.gradients.outputs import Pass, Silent
from ftrace.gradients.rules import LINEAR
from ftrace.gradients.uses import ProjectedUse, Use

Measure = Literal["log_probs", "entropy"]
CAPTURES: WeakSet[Any] = WeakSet()  # those with hooks on a module
_HEAD = replace(LINEAR, parameter_axes=lambda module: 0)  # its outputs have no axis of features


@dataclass(frozen=True)
class FusedHead:
    """One run of a fused head: ``softmax(softcap tanh(scale (W h + b) / softcap) / temperature)`` for each position.

    Args:
        module: The linear layer whose weight it uses.
        hidden: The hidden states, ``[N, H]``, of some tokens of a batch.
        targets: The tokens whose log-probabilities are returned, ``[N]``.
        places: Which of the batch's tokens, all rows in turn, these are, ``[N]``; default: all.
        tokens: The number of the batch's tokens, ``R * T``; default: N.
        temperature: Of the softmax.
        softcap: The bound of the logits; None: there is none.
        scale: What logits are multiplied by.
        dtype: Of the product of hidden states and weight.
    """

    module: nn.Linear
    hidden: Tensor
    targets: Tensor
    places: Tensor | None = None
    tokens: int = 0
    temperature: float = 1.0
    softcap: float | None = None
    scale: float = 1.0
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> torch.Size:
        """The shape of an output, spread out over the batch."""
        return torch.Size([len(self.hidden) if self.places is None else self.tokens])

    def spread(self, tensor: Tensor) -> Tensor:
        """Spread ``[N, ...]`` out over the batch's tokens, ``[R * T, ...]``, with zeros elsewhere."""
        if self.places is None:
            return tensor
        return tensor.new_zeros(self.tokens, *tensor.shape[1:]).index_copy(0, self.places, tensor)

    def gathered(self, tensor: Tensor) -> Tensor:
        """Undo :meth:`spread`."""
        return tensor if self.places is None else tensor.index_select(0, self.places)

    def gradient_of_logits(self, measure: Measure, grad: Tensor) -> Tensor:
        """Turn the gradient of the log-probabilities, or of the entropies, ``[N]``, into that of ``W h + b``."""
        weight, bias = self.module.weight.detach().to(self.dtype), self.module.bias
        with torch.autocast(grad.device.type, enabled=False):
            shift = None if bias is None else bias.detach().to(self.dtype)
            logits = F.linear(self.hidden.detach().to(self.dtype), weight, shift)
            logits = logits.to(torch.promote_types(self.dtype, torch.float32))
            with torch.enable_grad():
                leaf = logits.requires_grad_()
                scaled = leaf * self.scale
                if self.softcap is not None:
                    scaled = self.softcap * torch.tanh(scaled / self.softcap)
                log_p = (scaled / self.temperature).log_softmax(-1)
                if measure == "log_probs":
                    value = log_p.gather(-1, self.targets.unsqueeze(-1)).squeeze(-1)
                else:
                    value = -(log_p.exp() * log_p).sum(-1)
            (of_logits,) = torch.autograd.grad(value, leaf, grad.to(value.dtype))
        return of_logits


class _Spread:
    """The part of an output of a fused head that knows which tokens it is of."""

    head: FusedHead

    def _laid_out(self, grad: Tensor) -> Tensor:
        return self.head.spread(grad)

    def _as_given(self, laid_out: Tensor, grad: Tensor) -> Tensor:
        return self.head.gathered(laid_out)


class SilentHead(_Spread, Silent):
    """Output of a fused head of which nothing is kept."""


class _OfHead(_Spread):
    """The part of a use of a fused head that turns gradients."""

    measure: Measure
    of_pass: Pass

    @classmethod
    def of(cls, layer: Layer, head: FusedHead, measure: Measure, *rest: Any) -> Any:
        """Make a use of one output; the other arguments are those of ``Use``, from ``key`` on."""
        use: Any = cls(layer, _HEAD, head.hidden, torch.empty(head.shape), *rest)  # type: ignore[call-arg]
        use.head, use.measure = head, measure
        return use

    def add(self, grad: Tensor, layout: Layout | None) -> None:
        """Add the gradient of an output, ``[R * T]``."""
        of_logits = self.head.gradient_of_logits(self.measure, self.head.gathered(grad))
        super().add(self.head.spread(of_logits), layout)  # type: ignore[misc]

    def grad_by_example(self, grad: Tensor, layout: Layout | None) -> Tensor:
        """Lay the logits' gradient out by example, ``[B, T, V]``."""
        assert layout is not None  # log-probabilities are no example's that all share
        return by_example(grad, layout, self.of_pass.examples)

    def features_by_example(self, features: Tensor, layout: Layout | None) -> Tensor:
        """Lay hidden states out by example, ``[B, T, H]``."""
        assert layout is not None
        return by_example(self.head.spread(features), layout, self.of_pass.examples)


class HeadUse(_OfHead, Use):
    """One output of one run of a fused head."""


class ProjectedHeadUse(_OfHead, ProjectedUse):
    """The same, projected at once."""


def record_head(head: FusedHead, outputs: Mapping[Measure, Tensor | None]) -> None:
    """Tell all captures that a fused head has run.

    Args:
        outputs: What it has returned, each ``[N]``; None for what it has left out.
    """
    for capture in list(CAPTURES):
        capture.after_head(head, {name: output for name, output in outputs.items() if output is not None})


def differentiable(outputs: Mapping[Measure, Tensor]) -> Iterator[tuple[Measure, Tensor]]:
    """Yield the outputs that have a gradient."""
    for measure, output in outputs.items():
        if output.requires_grad:
            yield measure, output
