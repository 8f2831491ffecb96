"""Tiny seeded models of the families that can be traced, and where their modules are.

Weights are large enough, and biases and norms far enough from 0 and 1, that every cell has an effect of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from helpers.per_cell import Modules

VOCABULARY = 23


def gpt2(**changes: Any) -> GPT2LMHeadModel:
    """Four layers."""
    settings: dict[str, Any] = dict(
        vocab_size=VOCABULARY, n_embd=12, n_layer=4, n_head=3, n_positions=16, bos_token_id=1, eos_token_id=1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.4,
    )  # fmt: skip
    return _built(GPT2LMHeadModel, GPT2Config, {**settings, **changes})


def llama(**changes: Any) -> LlamaForCausalLM:
    """With grouped-query attention."""
    return _built(LlamaForCausalLM, LlamaConfig, {**_grouped(), **changes})


def qwen2(**changes: Any) -> Qwen2ForCausalLM:
    """With grouped-query attention, and biases in its projections."""
    return _built(Qwen2ForCausalLM, Qwen2Config, {**_grouped(), **changes})


def gemma2(**changes: Any) -> Gemma2ForCausalLM:
    """Soft caps that bite, and on every other layer a sliding window that is shorter than the prompts."""
    settings: dict[str, Any] = dict(
        head_dim=4, query_pre_attn_scalar=4, sliding_window=3, attn_logit_softcapping=2.0,
        final_logit_softcapping=4.0, num_hidden_layers=4,
    )  # fmt: skip
    return _built(Gemma2ForCausalLM, Gemma2Config, {**_grouped(), **settings, **changes})


def neox(**changes: Any) -> GPTNeoXForCausalLM:
    """Attention and MLP side by side, and half of each head rotated."""
    settings: dict[str, Any] = dict(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=16, initializer_range=0.4, use_parallel_residual=True, bos_token_id=1, eos_token_id=1,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
    )  # fmt: skip
    return _built(GPTNeoXForCausalLM, GPTNeoXConfig, {**settings, **changes})


def t5(**changes: Any) -> T5ForConditionalGeneration:
    """Three encoder and two decoder layers."""
    settings: dict[str, Any] = dict(
        vocab_size=VOCABULARY, d_model=12, d_kv=4, d_ff=20, num_layers=3, num_decoder_layers=2, num_heads=3,
        relative_attention_num_buckets=8, relative_attention_max_distance=16, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0, initializer_factor=1.0, dropout_rate=0.0,
    )  # fmt: skip
    return _built(T5ForConditionalGeneration, T5Config, {**settings, **changes})


def t5_gated(**changes: Any) -> T5ForConditionalGeneration:
    """T5 with a gated feed-forward layer and a head of its own."""
    settings = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "initializer_factor": 0.5}
    return t5(**{**settings, **changes})


@dataclass(frozen=True)
class Family:
    """A model's builder (it takes changes of its config), where its modules are by stack, and its attentions."""

    build: Any
    stacks: dict[str, Modules]
    attentions: tuple[str, ...] = ("eager", "sdpa")


LLAMA_LIKE = {"decoder": Modules("model.embed_tokens", "model.layers.{layer}", "self_attn", "mlp")}
T5_LIKE = {
    "encoder": Modules(
        "encoder.embed_tokens", "encoder.block.{layer}", "layer.0.SelfAttention", "layer.1.DenseReluDense"
    ),
    "decoder": Modules(
        "encoder.embed_tokens",
        "decoder.block.{layer}",
        "layer.0.SelfAttention",
        "layer.2.DenseReluDense",
        "layer.1.EncDecAttention",
    ),
}
FAMILIES = {
    "gpt2": Family(gpt2, {"decoder": Modules("transformer.wte", "transformer.h.{layer}", "attn", "mlp")}),
    "llama": Family(llama, LLAMA_LIKE),
    "qwen2": Family(qwen2, LLAMA_LIKE),
    "gemma2": Family(gemma2, LLAMA_LIKE, ("eager",)),  # the soft cap of attention is not in sdpa
    "neox": Family(neox, {"decoder": Modules("gpt_neox.embed_in", "gpt_neox.layers.{layer}", "attention", "mlp")}),
    "t5": Family(t5, T5_LIKE),
    "t5 gated": Family(t5_gated, T5_LIKE),
}


def prompt(model: Any, stack: str = "decoder", samples: int = 2, answers: Any = ((5, 7), (9,))) -> dict[str, Any]:
    """A prompt of six tokens with a subject of two of them, and how to trace it: the arguments of the per-cell oracle.

    An encoder-decoder gets three decoder tokens, so that there are places between the first and the last.
    """
    generator = torch.Generator().manual_seed(3)
    width = model.get_input_embeddings().embedding_dim
    return {
        "input_ids": torch.randint(2, VOCABULARY, (6,), generator=generator).tolist(),
        "subject": (1, 3),
        "noise": torch.randn(samples, 2, width, generator=generator, dtype=torch.float64),
        "answers": list(answers),
        "foil": 11,
        "decoder_ids": [0, 20, 4] if model.config.is_encoder_decoder else None,
        "stack": stack,
    }


def _grouped() -> dict[str, Any]:
    return dict(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=20, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.4, pad_token_id=0, bos_token_id=1,
        eos_token_id=1,
    )  # fmt: skip


def _built(model: Any, config: Any, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    built = model(config(**settings)).to(torch.float64).eval()
    for parameter in built.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return built
