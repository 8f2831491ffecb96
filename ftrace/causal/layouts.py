"""The names of a model's embedding, of its layers, and of the attention and feed-forward modules in them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from ftrace.causal.mediators import Module
from ftrace.causal.prompt_trace import Stack
from ftrace.causal.settings import ModelLayout

_PLACEHOLDERS = ("{layer}", "[LAYER_NUM]")


_GPT2 = ModelLayout("transformer.h.{layer}", ".attn", ".mlp", "transformer.wte")
_LLAMA = ModelLayout("model.layers.{layer}", ".self_attn", ".mlp", "model.embed_tokens")
_NEOX = ModelLayout("gpt_neox.layers.{layer}", ".attention", ".mlp", "gpt_neox.embed_in")
_T5: dict[Stack, ModelLayout] = {
    "encoder": ModelLayout(
        "encoder.block.{layer}", ".layer.0.SelfAttention", ".layer.1.DenseReluDense", "encoder.embed_tokens"
    ),
    "decoder": ModelLayout(
        "decoder.block.{layer}",
        ".layer.0.SelfAttention",
        ".layer.2.DenseReluDense",
        cross_attention=".layer.1.EncDecAttention",
    ),
}
PRESETS: dict[str, Mapping[Stack, ModelLayout]] = {
    "gpt2": {"decoder": _GPT2},
    "gptj": {"decoder": _GPT2},
    "gpt_neox": {"decoder": _NEOX},
    **{
        name: {"decoder": _LLAMA}
        for name in (
            "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "phi3", "smollm3"
        )
    },
    "t5": _T5,
    "mt5": _T5,
}  # fmt: skip


@dataclass(frozen=True)
class StackModules:
    """A stack's modules.

    Args:
        embedding: The token embedding that noise is added to.
        layers: From the lowest.
        modules: For each kind of module, that of each layer.
        layer_names: The names of the layers within the model.
    """

    embedding: nn.Module | None
    layers: tuple[nn.Module, ...]
    modules: Mapping[Module, tuple[nn.Module, ...]]
    layer_names: tuple[str, ...] = ()


def layouts_of(model: PreTrainedModel) -> Mapping[Stack, ModelLayout]:
    """Return the preset for a model's type.

    Raises:
        ValueError: If there is none.
    """
    kind = model.config.model_type
    if kind not in PRESETS:
        raise ValueError(
            f"no module names are known for the model type {kind!r}, but for {', '.join(sorted(PRESETS))}. Give them: "
            'layouts: {decoder: {embedding: ..., layer: "...{layer}", attention: ".attn", mlp: ".mlp"}}'
        )
    return PRESETS[kind]


def find_modules(model: nn.Module, layout: ModelLayout) -> StackModules:
    """Find the modules that a layout names.

    Raises:
        ValueError: If a name has no placeholder or no module has it; the message lists similar names.
    """
    named = dict(model.named_modules())
    template = _template(layout.layer, "layer")
    layers: list[nn.Module] = []
    while (name := template.replace("{layer}", str(len(layers)))) in named:
        layers.append(named[name])
    if not layers:
        raise _unknown("layer", template, named)
    kinds: dict[Module, str | None] = {
        "attention": layout.attention,
        "mlp": layout.mlp,
        "cross_attention": layout.cross_attention,
    }
    modules: dict[Module, tuple[nn.Module, ...]] = {}
    for kind, given in kinds.items():
        if given is None:
            continue
        full_name = _template(template + given if given.startswith(".") else given, kind)
        of_layers = [named.get(full_name.replace("{layer}", str(number))) for number in range(len(layers))]
        if None in of_layers:
            raise _unknown(kind, full_name.replace("{layer}", str(of_layers.index(None))), named)
        modules[kind] = tuple(module for module in of_layers if module is not None)
    if layout.embedding is not None and layout.embedding not in named:
        raise _unknown("embedding", layout.embedding, named)
    embedding = None if layout.embedding is None else named[layout.embedding]
    names = tuple(template.replace("{layer}", str(number)) for number in range(len(layers)))
    return StackModules(embedding, tuple(layers), modules, names)


def _template(name: str, what: str) -> str:
    for placeholder in _PLACEHOLDERS:
        name = name.replace(placeholder, "{layer}")
    if "{layer}" not in name:
        raise ValueError(f"layout: {what}: expected {{layer}} or [LAYER_NUM] in the name, found {name!r}")
    return name


def _unknown(what: str, name: str, named: Mapping[str, nn.Module]) -> ValueError:
    """Make the error for a name that no module has, with similar names that modules have."""
    short = dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".{layer}", other) for other in named if other)
    pattern = re.sub(r"\.\d+(?=\.|$)", ".{layer}", name)
    near = difflib.get_close_matches(pattern, short, n=6, cutoff=0.4)
    listed = ", ".join(map(repr, near or list(short)[:8]))
    return ValueError(f"layout: {what}: the model has no module {name!r}. {'Near' if near else 'It has'}: {listed}")
