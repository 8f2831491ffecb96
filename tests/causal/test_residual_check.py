"""The self-test of the residual stream: it passes what can be traced, refuses the rest, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ftrace.causal import PRESETS, CausalTracer, ModelLayout
from helpers.preset_models import model_of
from helpers.traceable_models import FAMILIES, VOCABULARY, gpt2, llama, t5

GPT2 = PRESETS["gpt2"]["decoder"]
HIDDEN = dict(hidden_size=16, pad_token_id=0, bos_token_id=1, eos_token_id=1)


def changed(**changes: Any) -> dict[Any, ModelLayout]:
    return {"decoder": ModelLayout(**{**vars(GPT2), **changes})}


def built(kind: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, **settings)
    return AutoModelForCausalLM.from_config(config).to(torch.float64).eval()


def state_of(model: torch.nn.Module) -> tuple[Any, ...]:
    hooks = [
        (name, list(module._forward_hooks.values()), list(module._forward_pre_hooks.values()), module.training)
        for name, module in model.named_modules()
    ]
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    return hooks, weights, torch.get_rng_state()


def assert_unchanged(model: torch.nn.Module, before: tuple[Any, ...]) -> None:
    hooks, weights, generator = state_of(model)
    assert hooks == before[0]
    assert all(torch.equal(weight, before[1][name]) for name, weight in weights.items())
    assert torch.equal(generator, before[2])
    assert not torch.is_inference_mode_enabled()


def bloom(**changes: Any) -> PreTrainedModel:
    return built("bloom", **{**HIDDEN, "n_layer": 3, "n_head": 2, "hidden_dropout": 0.0, **changes})


BLOOM = ModelLayout("transformer.h.{layer}", ".self_attention", ".mlp", "transformer.word_embeddings")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("post_layernorm", [False, True])
def test_bloom_whose_positions_are_made_for_as_many_rows_as_it_is_given(
    post_layernorm: bool, dtype: torch.dtype
) -> None:
    model = bloom(apply_residual_connection_post_layernorm=post_layernorm).to(dtype)
    before = state_of(model)
    message = (
        "type 'bloom' with this layout can't be traced: decoder, layer 0: it does not run with rows that are added"
    )
    with pytest.raises(ValueError, match=message):
        CausalTracer(model, layouts={"decoder": BLOOM})
    assert_unchanged(model, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("stack", "changes"),
    [
        ("encoder", {"attention": ".layer.0"}),
        ("encoder", {"mlp": ".layer.1"}),
        ("decoder", {"attention": ".layer.0"}),
        ("decoder", {"mlp": ".layer.2"}),
        ("decoder", {"cross_attention": ".layer.1"}),
    ],
)
def test_t5_with_modules_that_add_the_state_themselves(stack: Any, changes: dict[str, str], dtype: torch.dtype) -> None:
    model = t5().to(dtype)
    before = state_of(model)
    layouts = {**PRESETS["t5"], stack: ModelLayout(**{**vars(PRESETS["t5"][stack]), **changes})}
    with pytest.raises(
        ValueError, match=f"type 't5' with this layout can't be traced: {stack}, layer 1: with attention"
    ):
        CausalTracer(model, layouts=layouts)
    assert_unchanged(model, before)


def test_parts_that_a_t5_needs() -> None:
    with pytest.raises(ValueError, match="expected the name of its token embedding, which noise is added to"):
        CausalTracer(t5(), layouts={**PRESETS["t5"], "encoder": ModelLayout(
            **{**vars(PRESETS["t5"]["encoder"]), "embedding": None}
        )})  # fmt: skip


def test_opt_whose_modules_see_no_rows() -> None:
    """Its feed-forward modules are given all tokens of all rows as one list."""
    model = built("opt", **HIDDEN, ffn_dim=20, num_hidden_layers=3, num_attention_heads=2, word_embed_proj_dim=16,
                  max_position_embeddings=16, dropout=0.0)  # fmt: skip
    before = state_of(model)
    layout = ModelLayout("model.decoder.layers.{layer}", ".self_attn", ".fc2", "model.decoder.embed_tokens")
    message = r"type 'opt' .* can't be traced: expected a module that returns states \[rows, tokens, width\], found a"
    with pytest.raises(ValueError, match=message):
        CausalTracer(model, layouts={"decoder": layout})
    assert_unchanged(model, before)


WHOLE = "transformer.h.{layer}"
NOT_PASSED = r"layer 1: with attention, mlp frozen at a token, what was put into its state must pass the layer"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp": WHOLE, "attention": WHOLE}, NOT_PASSED),
        ({"mlp": WHOLE}, NOT_PASSED),
        ({"attention": WHOLE}, NOT_PASSED),
        ({"mlp": ".attn"}, NOT_PASSED),
        ({"attention": ".mlp"}, NOT_PASSED),
        (
            {"layer": f"{WHOLE}.ln_1", "attention": f"{WHOLE}.attn", "mlp": f"{WHOLE}.mlp"},
            "decoder, layer 1: it does not run with rows that are added",
        ),
        ({"layer": f"{WHOLE}.mlp", "attention": f"{WHOLE}.attn", "mlp": f"{WHOLE}.mlp"}, "can't be traced"),
        ({"mlp": ".attn.attn_dropout"}, "can't be traced"),
        ({"embedding": "transformer.wpe"}, r"Is `embedding` the module of token embeddings"),
        ({"embedding": "transformer.ln_f"}, "Is `embedding` the module of token embeddings"),
        ({"embedding": "transformer.h.0.ln_1"}, "Is `embedding` the module of token embeddings"),
        ({"embedding": "transformer.drop"}, "Is `embedding` the module of token embeddings"),
        ({"embedding": "transformer.h"}, "Is `embedding` the module of token embeddings"),
        ({"embedding": "transformer"}, "Is `embedding` the module of token embeddings"),
        ({"embedding": "lm_head"}, "Is `embedding` the module of token embeddings"),
        ({"embedding": None}, "expected the name of its token embedding, which noise is added to, found none"),
    ],
)
def test_layouts_of_other_modules_are_refused(changes: dict[str, str], message: str) -> None:
    model = gpt2()
    before = state_of(model)
    with pytest.raises(ValueError, match=message) as caught:
        CausalTracer(model, layouts=changed(**changes))
    assert "models of the type 'gpt2' with this layout can't be traced" in str(caught.value)
    assert_unchanged(model, before)


@pytest.mark.parametrize("positions", [16, 64])
def test_position_embeddings_are_no_token_embeddings(positions: int) -> None:
    """Whether there are fewer of them than words, or more."""
    with pytest.raises(ValueError, match="Is `embedding` the module of token embeddings"):
        CausalTracer(gpt2(n_positions=positions), layouts=changed(embedding="transformer.wpe"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_precision_passes(family: str, dtype: torch.dtype) -> None:
    model = FAMILIES[family].build().to(dtype)
    before = state_of(model)
    CausalTracer(model)
    assert_unchanged(model, before)


@pytest.mark.parametrize("kind", sorted(PRESETS.keys()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_known_type_passes_in_any_precision(kind: str, dtype: torch.dtype) -> None:
    model = model_of(kind)
    try:
        CausalTracer(model.to(dtype))
    finally:
        model.to(torch.float64)


@pytest.mark.parametrize("layers", [1, 2, 12])
def test_any_depth_passes(layers: int) -> None:
    CausalTracer(gpt2(n_layer=layers))
    CausalTracer(t5(num_layers=layers, num_decoder_layers=layers))


def scaled(module: torch.nn.Module, args: Any, output: Any) -> Any:
    """A layer that forgets a tenth of its state, as no transformer's does."""
    return (0.9 * output[0], *output[1:]) if isinstance(output, tuple) else 0.9 * output


def leaks(module: torch.nn.Module, args: Any, output: Any) -> Any:
    """A layer with a third path, beside attention and the feed-forward module."""
    states = args[0]
    more = 0.1 * states.tanh()
    return (output[0] + more, *output[1:]) if isinstance(output, tuple) else output + more


@pytest.mark.parametrize(
    ("build", "layer", "stack"),
    [
        (gpt2, "transformer.h.{}", "decoder"),
        (llama, "model.layers.{}", "decoder"),
        (t5, "encoder.block.{}", "encoder"),
        (t5, "decoder.block.{}", "decoder"),
    ],
)
@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        (scaled, torch.float64),
        (leaks, torch.float64),
        (scaled, torch.float32),
        (leaks, torch.float32),
        (scaled, torch.bfloat16),  # what leaks there is little more than what rounds
    ],
)
def test_layers_that_do_more_than_add_are_refused(
    build: Callable[[], PreTrainedModel], layer: str, stack: str, change: Any, dtype: torch.dtype
) -> None:
    model = build().to(dtype)
    model.get_submodule(layer.format(1)).register_forward_hook(change)
    before = state_of(model)
    kind = model.config.model_type
    with pytest.raises(ValueError, match=f"type '{kind}' .* can't be traced: {stack}, layer 1: with .* frozen"):
        CausalTracer(model)
    assert_unchanged(model, before)


def in_train_mode(model: PreTrainedModel) -> PreTrainedModel:
    return model.train()


def with_one_module_in_train_mode(model: PreTrainedModel) -> PreTrainedModel:
    model.transformer.h[2].attn.attn_dropout.train()
    return model


def compiled(model: PreTrainedModel) -> Any:
    return torch.compile(model)


def compiled_in_place(model: PreTrainedModel) -> PreTrainedModel:
    model.compile()
    return model


def with_one_compiled_layer(model: PreTrainedModel) -> PreTrainedModel:
    model.transformer.h[1].compile()
    return model


def with_one_layer_wrapped(model: PreTrainedModel) -> PreTrainedModel:
    model.transformer.h[1] = torch.compile(model.transformer.h[1])
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_train_mode, "expected a model in eval mode, found 'GPT2LMHeadModel' in train mode"),
        (with_one_module_in_train_mode, r"found 'transformer.h.2.attn.attn_dropout' in train mode. Call model.eval"),
        (compiled, "expected a model that is not compiled"),
        (compiled_in_place, "expected a model that is not compiled"),
        (with_one_compiled_layer, "expected a model that is not compiled"),
        (with_one_layer_wrapped, "expected a model that is not compiled"),
    ],
)
def test_states_in_which_models_cannot_be_traced(change: Callable[[PreTrainedModel], Any], message: str) -> None:
    model = gpt2()
    given = change(model)
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        CausalTracer(given)
    assert_unchanged(model, before)
