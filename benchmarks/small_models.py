"""A small model of each text model type of Transformers: its sizes, random weights, batches and losses.

A type's config is its default one, made small: each size by its field's name, and one layer of each kind that it has.
Overrides say what that doesn't reach. ``model_types.py`` sweeps over all types, and the tests take some of them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

VOCABULARY = 29
_FIRST_WORD = 5  # ids below are special tokens
_LARGEST = 200_000

_FIELDS_OF_SIZE: dict[int, str] = {
    VOCABULARY: """vocab_size src_vocab_size tgt_vocab_size decoder_vocab_size vocab_size_per_layer_input
        unpadded_vocab_size t2u_vocab_size char_vocab_size pronunciation_vocab_size shape_vocab_size""",
    64: """max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length max_source_positions
        original_max_position_embeddings max_target_positions max_encoder_position_embeddings
        max_decoder_position_embeddings""",
    32: """hidden_size d_model n_embd emb_dim embedding_size embedding_dim word_embed_proj_dim lru_width
        attention_hidden_size input_embedding_size output_embedding_size pronunciation_embed_dim shape_embed_dim
        hidden_size_global""",
    24: """intermediate_size moe_intermediate_size encoder_ffn_dim decoder_ffn_dim ffn_dim d_ff dff dim_ff d_inner
        n_inner ffn_hidden_size expert_ffn_hidden_size shared_expert_intermediate_size feed_forward_size
        shared_experts_intermediate_size shared_intermediate_size intermediate_size_mlp dense_intermediate_size
        moe_shared_expert_intermediate_size""",
    8: """head_dim d_kv d_head dim_head attention_head_size attention_head_dim v_head_dim qk_nope_head_dim kv_channels
        linear_key_head_dim linear_value_head_dim linear_head_dim swa_head_dim index_head_dim rotary_dim kv_lora_rank
        q_lora_rank o_lora_rank gated_norm_rank laurel_rank adapter_rank loop_gate_rank hc_lowrank mamba_d_head
        mamba_headdim mamba_head_dim mamba_d_state state_size ssm_state_size mamba_n_heads mamba_num_heads
        relative_attention_num_buckets position_bias_num_buckets num_buckets hidden_size_per_layer_input
        router_hidden_size d_rel rel_extent block_multiple_of ffn_round_up_to_multiple_of prompt_mid_dim""",
    4: """num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads
        num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads index_n_heads linear_num_heads
        linear_num_value_heads num_query_groups num_experts num_local_experts n_routed_experts moe_num_experts
        zero_expert_num expert_capacity qk_rope_head_dim mamba_dt_rank time_step_rank mamba_chunk_size chunk_size
        sliding_window sliding_window_size window_size attention_window_size attention_window attention_chunk_size
        local_attention keep_window_size block_size local_radius global_block_size index_topk index_block_size
        num_global_tokens prompt_types prompt_length segment_types""",
    2: """num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers
        num_decoder_layers num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads
        num_experts_per_tok num_experts_per_token moe_topk moe_k n_group num_expert_group topk_group n_groups o_groups
        num_blocks hc_mult hc_count index_topk_blocks max_window_layers encoder_sparse_step decoder_sparse_step""",
    1: """n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace num_dense_layers
        num_sparse_encoder_layers num_sparse_decoder_layers num_nextn_predict_layers""",
}
_SIZES = {name: size for size, names in _FIELDS_OF_SIZE.items() for name in names.split()}
_NOISE = re.compile("drop|jitter")
_LAYER_KINDS = re.compile("^((mlp_)?layer_types|layers_block_type|indexer_types)$")

# What names don't tell, or what is left out by default.
_OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 50, "encoder_hash_byte_group_size": [3, 4]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}, "ffn_config": {"moe_top_k": 2}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": {
        "num_key_value_heads": 4, "qk_nope_head_dim": 4, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 8, "swa_kv_lora_rank": 8, "swa_head_dim": 8, "swa_qk_nope_head_dim": 4, "swa_v_head_dim": 8,
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "flint": {"mlp_only_layers": [0]},
    "gemma3n_text": {
        "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
    },
    "gemma4_text": {
        "global_head_dim": 8, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
        "moe_intermediate_size": 24,
    },
    "gemma4_unified_text": {"global_head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "inkling2_loop_text": {"n_layers_per_attn_res_block": 1, "loop_layer_index_start": 1, "loop_layer_index_end": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 4},
    "mamba2": {"num_heads": 8},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"], "mlp_layer_types": ["dense", "sparse"],
        "index_n_heads": 2,
    },
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4,
        "indexer_compress_ratio": 2, "ple_layer_ids": [1], "ngram_vocab_size_base": 20, "heads_per_ngram": 2,
        "make_ngram_vocab_size_divisible_by": 4, "split_ngram_parts": 1, "eos_token_id": 2,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
    "zamba2": {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
}  # fmt: skip
# Structures of a type that its default leaves out.
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "doge-experts": ("doge", {"is_moe": True, "num_experts": 4, "num_experts_per_tok": 2}),
    "falcon-alibi": ("falcon", {"alibi": True}),
    "longt5-global": ("longt5", {"encoder_attention_type": "transient-global"}),
    "mvp-prompt": ("mvp", {"use_prompt": True}),
    "opt-projected": ("opt", {"word_embed_proj_dim": 16}),
    "t5-gated": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
}
_NOT_BUILT = {
    "fuyu": "not a text model: it takes patches of images",
    "gemma4_assistant": "it reads the keys and values of another model",
    "gemma4_unified_assistant": "it reads the keys and values of another model",
    "granite_speech": "not a text model: it takes speech",
    "granite_speech_plus": "not a text model: it takes speech",
    "moshi": "not a text model: it takes codes of audio",
    "reformer": "it can't be differentiated in eval mode, in which queries are",
}
_OTHER_SENSES = re.compile("vision|audio|vq_|tokenizer")


def type_names() -> dict[str, tuple[str, bool]]:
    """All names of the sweep: the config's model type each, and whether the model is an encoder-decoder.

    The decoder of an encoder-decoder, taken as a model of its own, is ``TYPE-decoder``.
    """
    seq2seq = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    names = {
        f"{model_type}-decoder" if model_type in seq2seq else model_type: (model_type, False)
        for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    }
    variants = {name: (model_type, model_type in seq2seq) for name, (model_type, _) in _VARIANTS.items()}
    return names | {model_type: (model_type, True) for model_type in seq2seq} | variants


def why_not_built(name: str) -> str | None:
    """Why a type is left out, if it is."""
    model_type, _ = type_names()[name]
    if model_type in _NOT_BUILT:
        return _NOT_BUILT[model_type]
    others = [part for part in CONFIG_MAPPING[model_type].sub_configs if _OTHER_SENSES.search(part)]
    if others:
        return f"not a text model: it has {' and '.join(others)}"
    with torch.device("meta"):
        elements = build(name).num_parameters()
    return f"not small: {elements:,} parameters" if elements > _LARGEST else None


def small_config(name: str, *, use_cache: bool = False) -> Any:
    """The type's config, small."""
    model_type, _ = type_names()[name]
    config_class = CONFIG_MAPPING[model_type]
    if model_type == "encoder-decoder":
        decoder = _shrunk(CONFIG_MAPPING["bert"], {}, use_cache)
        encoder = _shrunk(CONFIG_MAPPING["bert"], {"is_decoder": False}, use_cache)
        return config_class.from_encoder_decoder_configs(encoder, decoder)
    _, changes = _VARIANTS.get(name, (model_type, {}))
    return _shrunk(config_class, _OVERRIDES.get(model_type, {}) | changes, use_cache)


def _shrunk(config_class: Any, changes: dict[str, Any], use_cache: bool) -> Any:
    fields = {name: parameter.default for name, parameter in inspect.signature(config_class).parameters.items()}
    parts = config_class.sub_configs
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if name in parts:
            small[name] = _shrunk(_class_of_part(config_class, name), changes.get(name, {}), use_cache)
        elif name in _SIZES and isinstance(value, int) and value > _SIZES[name]:
            small[name] = _SIZES[name]
        elif _NOISE.search(name) and isinstance(value, float):
            small[name] = 0.0
        elif name.endswith("_token_id") and isinstance(value, int) and value >= _FIRST_WORD:
            small[name] = _FIRST_WORD - 1
    if "num_key_value_heads" in fields and fields["num_key_value_heads"] == fields.get("num_attention_heads"):
        small["num_key_value_heads"] = small["num_attention_heads"]  # not every attention can have fewer
    if "pad_token_id" in fields and fields["pad_token_id"] is None:
        small["pad_token_id"] = 0
    if "is_decoder" in fields:
        small["is_decoder"] = True
    if "use_cache" in fields:
        small["use_cache"] = use_cache
    own = {name: value for name, value in changes.items() if name not in parts}
    return config_class(**{**small, **_one_layer_of_each_kind(config_class, fields), **own})


def _class_of_part(config_class: Any, part: str) -> Any:
    default = getattr(config_class(), part)
    return type(default) if default is not None else config_class.sub_configs[part]


def _one_layer_of_each_kind(config_class: Any, fields: Iterable[str]) -> dict[str, Any]:
    """Of each combination of kinds that the default has; two layers at least."""
    default = config_class()
    lists = {name: getattr(default, name) for name in fields if _LAYER_KINDS.search(name)}
    lists = {name: kinds for name, kinds in lists.items() if isinstance(kinds, list)}
    if not lists:
        return {}
    layers = list(dict.fromkeys(zip(*lists.values(), strict=True)))
    layers = layers * 2 if len(layers) == 1 else layers
    chosen = zip(lists, map(list, zip(*layers, strict=True)), strict=True)
    return {**dict(chosen), "num_hidden_layers": len(layers)}


def build(name: str, dtype: torch.dtype = torch.float32, *, use_cache: bool = False) -> Any:
    """The model, with random weights none of which is 0 or 1, where mistakes would hide.

    Args:
        name: The type.
        dtype: Of the weights.
        use_cache: Whether keys and values are kept while it trains, too, as by default.
    """
    torch.manual_seed(0)
    auto = AutoModelForSeq2SeqLM if type_names()[name][1] else AutoModelForCausalLM
    # The default for experts has no float64.
    experts = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    model = auto.from_config(small_config(name, use_cache=use_cache), dtype=dtype, **experts)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def family(model: Any) -> str:
    """What kind of model it is, by the names of its parts."""
    names = " ".join(name for name, _ in model.named_parameters())
    kinds = ["encoder-decoder" if model.config.is_encoder_decoder else "decoder"]
    if "expert" in names:
        kinds.append("experts")
    if re.search(r"A_log|conv1d|time_decay|rg_lru|linear_attn|lstm|conv\.", names):
        kinds.append("recurrent")
    return ", ".join(kinds)


def random_batch(model: Any, rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Rows of different lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    input_ids, mask = _random_rows(rows, 8, generator)
    batch = {"input_ids": input_ids, "attention_mask": mask.long()}
    if not model.config.is_encoder_decoder:
        return {**batch, "labels": input_ids.masked_fill(~mask, -100)}
    targets, mask = _random_rows(rows, 6, generator)
    decoder_input_ids = torch.cat([torch.ones(rows, 1, dtype=torch.long), targets[:, :-1]], 1)
    return {**batch, "decoder_input_ids": decoder_input_ids, "labels": targets.masked_fill(~mask, -100)}


def _random_rows(rows: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    ids = torch.randint(_FIRST_WORD, VOCABULARY, (rows, length), generator=generator)
    lengths = torch.randint(3, length + 1, (rows,), generator=generator)
    lengths[0] = length
    mask = torch.arange(length) < lengths[:, None]
    return ids * mask, mask


def token_losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """One loss a row, the summed negative log-likelihood of its labels, ``[B]``."""
    takes = inspect.signature(model.forward).parameters
    inputs = {name: value for name, value in batch.items() if name in takes and name != "labels"}
    logits, labels = model(**inputs).logits, batch["labels"]
    if not model.config.is_encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none").sum(1)
