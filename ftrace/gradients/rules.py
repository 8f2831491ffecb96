"""Layer rules: how each example's gradient follows from a layer's input and the gradient of its output.

A rule is exact: the sum of its parts over the examples is the gradient that autograd accumulates. It has two halves.
The *features* of an input are what multiplies the gradient of the output. Both are laid out by position, as
``[B, T, I]`` and ``[B, T, O]`` (ids as ``[B, T]``), where T runs over all of an example's positions. Published as the
per-layer decompositions of Goodfellow 2015 (arXiv 1510.01799) and, for convolutions, Rochette et al. 2019 (arXiv
1912.06015).
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ftrace.gradients.parts import Dense, Lookup, Outer, Part, Positions, accumulation_dtype

Parts = dict[str, Part | Positions]
Lookups = Literal["no", "ids", "shared"]


@dataclass(frozen=True)
class Rule:
    """Instructions for reading per-example gradients off one kind of layer.

    Args:
        name: Its name in coverage reports.
        parameters: Local names of the parameters that the rule knows.
        parts: ``(module, features [B, T, I] or ids [B, T], output gradient [B, T, O], wanted local names) -> {local
            name: part}``.
        features: ``(module, input) -> features [rows, ..., I]``.
        refuse: Why a given module of this kind can't be covered, or None.
        lookup: Whether the input is row numbers ("ids"), or row numbers that are always given once for the whole batch
            ("shared"), such as relative positions.
        channel_axis: The axis of the output gradient that the parameter's axis runs along.
        batched_axes: How many axes an input has whose first one is the batch; 0 where it may have any number.
        feature_axis: The axis of the weight, seen as a matrix, that features run along: 0 for rows, 1 for columns;
            None where the weight's gradient is no matrix product of features.
        parameter_axes: ``(module) -> `` number of the output's last axes that the parameters run along.
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
    parameter_axes: Callable[[nn.Module], int] = lambda module: 1

    def is_single(self, inputs: Tensor) -> bool:
        """Whether an input has no batch axis, although inputs of such layers may have one."""
        return inputs.ndim < self.batched_axes

    @property
    def is_table(self) -> bool:
        """Whether the input is row numbers."""
        return self.lookup != "no"


def linear_parts(module: nn.Module, features: Tensor, grad: Tensor, wanted: Container[str]) -> Parts:
    """Give the parts of ``weight [O, I]`` and ``bias``."""
    parts: Parts = {}
    if "weight" in wanted:
        parts["weight"] = Outer(grad, features)
    if "bias" in wanted:
        parts["bias"] = Positions(grad)
    return parts


def transposed_linear_parts(module: nn.Module, features: Tensor, grad: Tensor, wanted: Container[str]) -> Parts:
    """Give the parts of ``weight [I, O]``, as Hugging Face's Conv1D stores it, and ``bias``."""
    parts = linear_parts(module, features, grad, wanted)
    if "weight" in wanted:
        parts["weight"] = Outer(features, grad)
    return parts


def embedding_parts(module: nn.Module, ids: Tensor, grad: Tensor, wanted: Container[str]) -> Parts:
    """Give the part of ``weight [R, C]``."""
    assert isinstance(module, nn.Embedding)
    if module.padding_idx is not None:
        grad = grad * (ids != module.padding_idx).unsqueeze(-1)
    return {"weight": Lookup(ids, grad, module.num_embeddings)}


def scale_parts(module: nn.Module, features: Tensor, grad: Tensor, wanted: Container[str]) -> Parts:
    """Give the parts of a layer that computes ``weight * features + bias``, or ``(1 + weight) * features``."""
    parts: Parts = {}
    shape = module.weight.shape
    assert isinstance(shape, torch.Size)
    if "weight" in wanted:
        # Nobody else holds the features, so the product may overwrite them.
        can_overwrite = features.dtype == grad.dtype and features.is_contiguous()
        parts["weight"] = _of_shape(features.mul_(grad) if can_overwrite else grad * features, shape)
    if "bias" in wanted:
        parts["bias"] = _of_shape(grad, shape)
    return parts


def _of_shape(value: Tensor, shape: torch.Size) -> Dense | Positions:
    """Make ``[B, T, C]`` a part of a parameter of that shape."""
    if len(shape) == 1:
        return Positions(value)
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
