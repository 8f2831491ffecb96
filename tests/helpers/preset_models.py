"""A tiny model of every type that has a preset for causal tracing."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from helpers.traceable_models import VOCABULARY

ENDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=1)
_GPT = dict(
    n_embd=16, n_layer=3, n_head=2, n_positions=16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    initializer_range=0.4, **ENDS,
)  # fmt: skip
_NEOX = dict(
    hidden_size=16, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=16,
    initializer_range=0.4, **ENDS,
)  # fmt: skip
_LLAMA = dict(_NEOX, num_attention_heads=4, num_key_value_heads=2, head_dim=4)
_T5 = dict(
    d_model=12, d_kv=4, d_ff=20, num_layers=3, num_decoder_layers=2, num_heads=3, dropout_rate=0.0, pad_token_id=0,
    eos_token_id=1, decoder_start_token_id=0, relative_attention_num_buckets=8, relative_attention_max_distance=16,
)  # fmt: skip
_SLIDING = dict(sliding_window=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT,
    "gptj": dict(_GPT, rotary_dim=4),
    "gpt_neox": _NEOX,
    "llama": _LLAMA,
    "mistral": dict(_LLAMA, sliding_window=3),
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": dict(_LLAMA, query_pre_attn_scalar=4, **_SLIDING),
    "gemma3_text": dict(_LLAMA, query_pre_attn_scalar=4, **_SLIDING),
    "olmo": dict(_LLAMA, clip_qkv=0.5),
    "olmo2": _LLAMA,
    "phi3": _LLAMA,
    "smollm3": dict(_LLAMA, no_rope_layers=[1, 0, 1]),
    "t5": _T5,
    "mt5": _T5,
}


@cache
def model_of(kind: str) -> PreTrainedModel:
    """A tiny model of the type's own class, in float64; weights, biases and norms far enough from 0 and 1."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, **CONFIGS[kind])
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config).to(torch.float64).eval()
    assert model.config.model_type == kind
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model
