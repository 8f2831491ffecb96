"""Every model type that has a preset can be traced, and names of modules that are wrong are said to be."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ftrace.causal import PRESETS, CausalTracer, ModelLayout
from ftrace.causal.layouts import find_modules, layouts_of
from helpers.per_cell import Modules, PerCell
from helpers.preset_models import CONFIGS, ENDS, model_of
from helpers.traceable_models import VOCABULARY, prompt
from helpers.tracing import assert_equal, traced

STACKS = [(kind, stack) for kind, layouts in PRESETS.items() for stack in layouts]


def modules_of(kind: str, stack: str) -> Modules:
    """The preset as the oracle takes it."""
    layout = PRESETS[kind][stack]  # type: ignore[index]
    within = [None if name is None else name.removeprefix(".") for name in (layout.mlp, layout.cross_attention)]
    embedding = next(one.embedding for one in PRESETS[kind].values() if one.embedding)
    return Modules(embedding, layout.layer, layout.attention.removeprefix("."), *within)  # type: ignore[arg-type]


def test_every_preset_is_tried() -> None:
    assert CONFIGS.keys() == PRESETS.keys()


@pytest.mark.parametrize(("kind", "stack"), STACKS)
def test_modules_are_what_they_are_called(kind: str, stack: str) -> None:
    model = model_of(kind)
    found = find_modules(model, layouts_of(model)[stack])  # type: ignore[index]
    assert len(found.layers) == len(found.layer_names) == (2 if stack == "decoder" and "t5" in kind else 3)
    assert all(model.get_submodule(name) is one for name, one in zip(found.layer_names, found.layers, strict=True))
    if "t5" in kind and stack == "decoder":
        assert found.embedding is None
    else:
        assert found.embedding is not None
        assert found.embedding.weight is model.get_input_embeddings().weight
    for what, modules in found.modules.items():
        words = {"mlp": ("MLP", "Dense"), "attention": ("Attention",), "cross_attention": ("Attention",)}[what]
        assert all(any(word in type(one).__name__ for word in words) for one in modules), what
        assert all(one in set(layer.modules()) for one, layer in zip(modules, found.layers, strict=True))
    assert ("cross_attention" in found.modules) == ("t5" in kind and stack == "decoder")


@pytest.mark.parametrize(("kind", "stack"), STACKS)
def test_grids_equal_one_forward_per_cell(kind: str, stack: str) -> None:
    """With the cache and without; building the tracer runs the self-test of the residual stream."""
    model = model_of(kind)
    given = prompt(model, stack, samples=2, answers=((5,),))
    oracle = PerCell(model, modules_of(kind, stack), **given)
    effect = oracle.clean() - oracle.corrupted().mean(0)
    assert effect[1:].abs().min() > 1e-5, "else doing nothing would agree"
    for suffix in (False, True)[: 1 if model.config.is_encoder_decoder else 2]:
        trace = traced(model, given, window=2, mediators=("hidden", "mlp_severed", "attention"), suffix=suffix)
        assert_equal(trace, oracle, stack, 2)


def test_either_placeholder_and_whole_names() -> None:
    model = model_of("gpt2")
    preset = PRESETS["gpt2"]["decoder"]
    expected = find_modules(model, preset)
    for layout in (
        ModelLayout("transformer.h.[LAYER_NUM]", ".attn", ".mlp", "transformer.wte"),
        ModelLayout(preset.layer, "transformer.h.{layer}.attn", "transformer.h.[LAYER_NUM].mlp", preset.embedding),
    ):
        assert find_modules(model, layout) == expected


LONG = ModelLayout("transformer.h.{layer}", ".attn", ".mlp", "transformer.wte")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "transformer.h"}, r"layout: layer: expected \{layer\} or \[LAYER_NUM\] in the name, found 't.*h'"),
        ({"mlp": "transformer.h.0.mlp"}, r"layout: mlp: expected \{layer\} or \[LAYER_NUM\] in the name"),
        ({"attention": "attn"}, r"layout: attention: expected \{layer\}"),
        (
            {"layer": "transformer.layers.{layer}"},
            r"layout: layer: the model has no module 'transformer.layers.\{layer\}'. Near: 'transformer.h.\{layer\}",
        ),
        ({"mlp": ".ffn"}, r"layout: mlp: .* no module 'transformer.h.0.ffn'. Near: .*'transformer.h.\{layer\}.mlp'"),
        ({"attention": ".attention"}, r"layout: attention: .*'transformer.h.0.attention'. Near: .*\{layer\}.attn'"),
        ({"cross_attention": ".cross"}, r"layout: cross_attention: .* no module 'transformer.h.0.cross'"),
        ({"embedding": "wte"}, r"layout: embedding: the model has no module 'wte'. .*'transformer.wte'"),
        ({"embedding": "transformer.embed"}, "layout: embedding: .*Near: .*'transformer"),
        ({"embedding": "zzz"}, "has no module 'zzz'. It has: 'transformer', 'transformer.wte'"),
    ],
)
def test_names_that_are_wrong(changes: dict[str, str], message: str) -> None:
    layout = ModelLayout(**{**vars(LONG), **changes})
    with pytest.raises(ValueError, match=message):
        find_modules(model_of("gpt2"), layout)
    with pytest.raises(ValueError, match=message):
        CausalTracer(model_of("gpt2"), layouts={"decoder": layout})


def test_a_module_that_one_layer_lacks() -> None:
    """Layers are counted on, and a name that is there in the first of them only is no match."""
    model = torch.nn.Module()
    model.h = torch.nn.ModuleList([torch.nn.ModuleDict({"attn": torch.nn.Identity()}) for _ in range(12)])
    model.h[0]["mlp"] = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"layout: mlp: the model has no module 'h.1.mlp'. Near: 'h.\{layer\}.mlp'"):
        find_modules(model, ModelLayout("h.{layer}", ".attn", ".mlp"))
    model.h.extend([torch.nn.ModuleDict({"attn": torch.nn.Identity()})])
    found = find_modules(model, ModelLayout("h.{layer}", ".attn", ".attn"))
    assert found.layer_names == tuple(f"h.{layer}" for layer in range(13))


def test_types_without_a_preset() -> None:
    config = AutoConfig.for_model("gpt_neo", vocab_size=VOCABULARY, hidden_size=8, num_layers=1, num_heads=2,
                                  attention_types=[[["global"], 1]], max_position_embeddings=16, **ENDS)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).double().eval()
    message = r"no module names are known for the model type 'gpt_neo', but for gemma, .*t5. Give them: layouts: "
    with pytest.raises(ValueError, match=message):
        CausalTracer(model)
    layout = ModelLayout("transformer.h.{layer}", ".attn", ".mlp", "transformer.wte")
    assert CausalTracer(model, layouts={"decoder": layout}).layer_names == {"decoder": ("transformer.h.0",)}
