"""Layer rules: what a layer's input and the gradient of its output say about each example's gradient.

A rule is exact: the sum of its parts over the examples is the gradient that autograd accumulates. It has two halves.
The *features* of an input are what multiplies the gradient of the output; both have their places laid out as
``[B, T, I]`` and ``[B, T, O]`` (ids as ``[B, T]``), where T runs over all of an example's places. Published as the
per-layer decompositions of Goodfellow 2015 (arXiv 1510.01799) and, for convolutions, Rochette et al. 2019 (arXiv
1912.06015).
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ftrace.gradients.parts import Dense, Lookup, Outer, Part, Places, accumulation_dtype

Parts = dict[str, Part | Places]
Lookups = Literal["no", "ids", "shared"]


@dataclass(frozen=True)
class Rule:
    """How to read per-example gradients off one kind of layer.

    Args:
        name: What a coverage report calls it.
        parameters: Local names of the parameters that the rule knows.
        parts: ``(module, features [B, T, I] or ids [B, T], output gradient [B, T, O], wanted local names) -> {local
            name: part}``.
        features: ``(module, input) -> features [rows, ..., I]``.
        refuse: Why this very module can't be covered, or None.
        lookup: Whether the input is row numbers ("ids"), and whether these surely come once for the whole batch
            ("shared"), as relative positions do.
        channel_axis: The axis of the output gradient that the parameter's own axis runs along.
        batched_axes: How many axes an input has whose first one is the batch; 0 where it may have any number.
        feature_axis: The axis of the weight, seen as a matrix, that features run along: 0 for rows, 1 for columns;
            None where the weight's gradient is no matrix product of features.
        own_axes: ``(module) -> `` how many of the output's last axes the parameters run along.
    """

    name: str
    parameters: tuple[str, ...]
    parts: Callable[[nn.Module, Tensor, Tensor, Container[str]], Parts]
    features: Callable[[nn.Module, Tensor], Tensor] = lambda module, x: x
    refuse: Callable[[nn.Module], str | None] = lambda module: None
    lookup: Lookups = "no"
    channel_axis: int = -1
    batched_axes: int = 0
    feature_axis: int | None = None
    own_axes: Callable[[nn.Module], int] = lambda module: 1

    def is_single(self, inputs: Tensor) -> bool:
        """Whether an input has no batch axis, though the rule's layers may have one."""
        return inputs.ndim < self.batched_axes

    @property
    def is_table(self) -> bool:
        """Whether the input is row numbers."""
        return self.lookup != "no"


def linear_parts(module: nn.Module, features: Tensor, grad: Tensor, wanted: Container[str]) -> Parts:
    """``weight [O, I]`` and ``bias``."""
    parts: Parts = {}
    if "weight" in wanted:
        parts["weight"] = Outer(grad, features)
    if "bias" in wanted:
        parts["bias"] = Places(grad)
    return parts


def transposed_linear_parts(module: nn.Module, features: Tensor, grad: Tensor, wanted: Container[str]) -> Parts:
    """``weight [I, O]``, as Hugging Face's Conv1D stores it, and ``bias``."""
    parts = linear_parts(module, features, grad, wanted)
    if "weight" in wanted:
        parts["weight"] = Outer(features, grad)
    return parts


def embedding_parts(module: nn.Module, ids: Tensor, grad: Tensor, wanted: Container[str]) -> Parts:
    """``weight [R, C]``."""
    assert isinstance(module, nn.Embedding)
    if module.padding_idx is not None:
        grad = grad * (ids != module.padding_idx).unsqueeze(-1)
    return {"weight": Lookup(ids, grad, module.num_embeddings)}


def scale_parts(module: nn.Module, features: Tensor, grad: Tensor, wanted: Container[str]) -> Parts:
    """Of a layer that is ``weight * features + bias``, or ``(1 + weight) * features``."""
    parts: Parts = {}
    shape = module.weight.shape
    assert isinstance(shape, torch.Size)
    if "weight" in wanted:
        same = features.dtype == grad.dtype and features.is_contiguous()  # nobody else's, so there is room in them
        parts["weight"] = _of_shape(features.mul_(grad) if same else grad * features, shape)
    if "bias" in wanted:
        parts["bias"] = _of_shape(grad, shape)
    return parts


def _of_shape(value: Tensor, shape: torch.Size) -> Dense | Places:
    """``[B, T, C]`` for a parameter of that shape."""
    if len(shape) == 1:
        return Places(value)
    return Dense(value.sum(1, dtype=accumulation_dtype(value)).unflatten(1, shape))


def _refuse_embedding(module: nn.Module) -> str | None:
    for option in ("sparse", "scale_grad_by_freq", "max_norm"):
        if getattr(module, option):
            return f"Embedding({option}={getattr(module, option)!r}) has no gradient that is a sum over examples"
    return None


LINEAR = Rule("Linear", ("weight", "bias"), linear_parts, feature_axis=1)
CONV1D = Rule("Conv1D", ("weight", "bias"), transposed_linear_parts, feature_axis=0)
EMBEDDING = Rule("Embedding", ("weight",), embedding_parts, refuse=_refuse_embedding, lookup="ids")


class FallbackRule:
    """Marker in the place of a rule: the layer has none, and is run once more (``fallback.py``)."""

    name = "fallback"


FALLBACK = FallbackRule()


class GraphRule:
    """Marker in the place of a rule: the parameters are read off autograd's graph, at the nodes that use them."""

    name = "graph"


GRAPH = GraphRule()
