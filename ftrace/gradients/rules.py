"""Layer rules: what a layer's input and the gradient of its output say about each example's gradient.

A rule is exact: the sum of its parts over the examples is the gradient that autograd accumulates. The shapes that
rules get: input ``[B, T, I]`` (or ids ``[B, T]``) and output gradient ``[B, T, O]``, where T runs over all of an
example's places. Published as the per-layer decompositions of Goodfellow 2015 (arXiv 1510.01799).
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ftrace.gradients.parts import Dense, Lookup, Outer, Part


@dataclass(frozen=True)
class Rule:
    """How to read per-example gradients off one kind of layer.

    Args:
        name: What a coverage report calls it.
        parameters: Local names of the parameters that the rule knows.
        parts: ``(module, input, output gradient, wanted local names) -> {local name: part}``.
        refuse: Why this very module can't be covered, or None.
        is_table: Whether the input is row numbers, which may come once for the whole batch (positions).
        channel_axis: The axis of the output gradient that the parameter's own axis runs along.
    """

    name: str
    parameters: tuple[str, ...]
    parts: Callable[[nn.Module, Tensor, Tensor, Container[str]], dict[str, Part]]
    refuse: Callable[[nn.Module], str | None] = lambda module: None
    is_table: bool = False
    channel_axis: int = -1


def _linear(module: nn.Module, x: Tensor, grad: Tensor, wanted: Container[str]) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    if "weight" in wanted:
        parts["weight"] = Outer(grad, x)
    if "bias" in wanted:
        parts["bias"] = Dense(grad.sum(1))
    return parts


def _conv1d(module: nn.Module, x: Tensor, grad: Tensor, wanted: Container[str]) -> dict[str, Part]:
    parts = _linear(module, x, grad, wanted)
    if "weight" in wanted:
        parts["weight"] = Outer(x, grad)  # the weight is stored [I, O], unlike Linear's [O, I]
    return parts


def _embedding(module: nn.Module, ids: Tensor, grad: Tensor, wanted: Container[str]) -> dict[str, Part]:
    assert isinstance(module, nn.Embedding)
    if module.padding_idx is not None:
        grad = grad * (ids != module.padding_idx).unsqueeze(-1)
    return {"weight": Lookup(ids, grad, module.num_embeddings)}


def _refuse_embedding(module: nn.Module) -> str | None:
    for option in ("sparse", "scale_grad_by_freq", "max_norm"):
        if getattr(module, option):
            return f"Embedding({option}={getattr(module, option)!r}) has no gradient that is a sum over examples"
    return None


def _scale(normalize: Callable[[nn.Module, Tensor], Tensor]) -> Callable[..., dict[str, Part]]:
    """The rule of a layer that is ``weight * normalize(x) + bias``."""

    def parts(module: nn.Module, x: Tensor, grad: Tensor, wanted: Container[str]) -> dict[str, Part]:
        found: dict[str, Part] = {}
        if "weight" in wanted:
            found["weight"] = Dense((grad * normalize(module, x)).sum(1))
        if "bias" in wanted:
            found["bias"] = Dense(grad.sum(1))
        return found

    return parts


def _layer_norm(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, nn.LayerNorm)
    return F.layer_norm(x, module.normalized_shape, eps=module.eps)


def _rms_norm(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, nn.RMSNorm)
    return F.rms_norm(x, module.normalized_shape, eps=module.eps)


def _t5_norm(module: nn.Module, x: Tensor) -> Tensor:
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)  # T5 takes it in float32, whatever x is
    epsilon: Any = module.variance_epsilon
    return x * torch.rsqrt(variance + epsilon)


def _refuse_norm(module: nn.Module) -> str | None:
    shape = getattr(module, "normalized_shape", (0,))
    return None if len(shape) == 1 else f"normalized_shape {tuple(shape)}: expected one axis"


_LINEAR = Rule("Linear", ("weight", "bias"), _linear)
_EMBEDDING = Rule("Embedding", ("weight",), _embedding, _refuse_embedding, is_table=True)

# By the forward that runs, so that a subclass which overrides it is not taken for its parent.
_BY_FORWARD: dict[Callable[..., Tensor], Rule] = {
    nn.Linear.forward: _LINEAR,
    nn.Embedding.forward: _EMBEDDING,
    nn.LayerNorm.forward: Rule("LayerNorm", ("weight", "bias"), _scale(_layer_norm), _refuse_norm),
    nn.RMSNorm.forward: Rule("RMSNorm", ("weight",), _scale(_rms_norm), _refuse_norm),
}
# Hugging Face's own layers, by full name: this package imports nothing but torch.
_BY_CLASS: dict[str, Rule] = {
    "transformers.pytorch_utils.Conv1D": Rule("Conv1D", ("weight", "bias"), _conv1d),
    "transformers.models.t5.modeling_t5.T5LayerNorm": Rule("T5LayerNorm", ("weight",), _scale(_t5_norm)),
}


def find_rule(module: nn.Module) -> Rule | None:
    """The rule for a layer, or None where there is none."""
    cls = type(module)
    return _BY_FORWARD.get(cls.forward) or _BY_CLASS.get(f"{cls.__module__}.{cls.__qualname__}")
