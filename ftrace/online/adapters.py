"""Adapters as PEFT keeps them, known by what their layers say of themselves: PEFT isn't imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def adapters_in_use(module: nn.Module) -> str:
    """Describe which adapters are active, merged and switched off, the same as long as none is switched.

    Args:
        module: Any module.

    Returns:
        A description; without adapters always the same.
    """
    return repr(sorted({(_active(layer), _merged(layer), _is_off(layer)) for layer in _layers(module)}))


def why_without_gradient(module: nn.Module) -> str:
    """Say why nothing in a module gets a gradient, if its adapters are the reason, and what to do about it.

    Args:
        module: Any module.

    Returns:
        A sentence that begins with a space; "" if neither adapters nor frozen parameters are the reason.
    """
    layers = list(_layers(module))
    merged = sorted({name for layer in layers for name in _merged(layer)})
    if merged:
        return (
            f" Adapters are merged into their base weights, {merged}, where no gradient reaches any adapter of the "
            "same layers: call unmerge_adapter() first"
        )
    if any(_is_off(layer) for layer in layers):
        return " Adapters are switched off: train them outside of disable_adapter(), or call enable_adapter_layers()"
    if any(parameter.requires_grad for parameter in module.parameters()):
        return ""
    if layers:
        return (
            " All adapters are frozen, as PEFT loads them: take PeftModel.from_pretrained(..., is_trainable=True), or "
            "set_adapter(...) to train one"
        )
    return (
        " All parameters are frozen: set requires_grad on those that are to be trained. Of adapters that were merged "
        "and unloaded, nothing is left to train"
    )


def _layers(module: nn.Module) -> Iterator[Any]:
    """Yield the modules that say which adapters of theirs are active."""
    for layer in module.modules():
        if isinstance(getattr(type(layer), "active_adapters", None), property):  # a method in Transformers' models
            yield layer


def _active(layer: Any) -> tuple[str, ...]:
    return tuple(layer.active_adapters)


def _merged(layer: Any) -> tuple[str, ...]:
    return tuple(getattr(layer, "merged_adapters", ()))


def _is_off(layer: Any) -> bool:
    return getattr(layer, "disable_adapters", False) is True
