"""Tiny seeded models and batches that the tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 19


def t5(dtype: torch.dtype = torch.float64, **changes: Any) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(
        vocab_size=VOCABULARY, d_model=12, d_kv=4, d_ff=20, num_layers=2, num_heads=3, pad_token_id=0, eos_token_id=1,
        relative_attention_num_buckets=8, relative_attention_max_distance=16, decoder_start_token_id=0,
        initializer_factor=0.5, dropout_rate=0.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(T5Config(**{**settings, **changes})).to(dtype)


def gpt2(dtype: torch.dtype = torch.float64, **changes: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(
        vocab_size=VOCABULARY, n_embd=12, n_layer=2, n_head=3, n_positions=16, bos_token_id=1, eos_token_id=1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.2,
    )  # fmt: skip
    return _jittered(GPT2LMHeadModel(GPT2Config(**{**settings, **changes})).to(dtype))


def t5_v1_1(dtype: torch.dtype = torch.float64, **changes: Any) -> T5ForConditionalGeneration:
    """With a gated feed-forward layer and a head of its own."""
    return t5(dtype, **{"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **changes})


def llama(dtype: torch.dtype = torch.float64, **changes: Any) -> LlamaForCausalLM:
    """With grouped-query attention."""
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.2, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return _jittered(LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).to(dtype))


def mixtral() -> MixtralForCausalLM:
    """With three experts."""
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_local_experts=3,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16, experts_implementation="eager",
        )
    )  # fmt: skip


def lora(dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """GPT-2 with adapters on its layers and its embedding, and a norm that is trained in full."""
    from peft import LoraConfig, get_peft_model

    targets = ["c_attn", "c_fc", "wte"]
    config = LoraConfig(
        r=2,
        target_modules=targets,
        modules_to_save=["ln_f"],
        fan_in_fan_out=True,
        lora_dropout=changes.pop("drop", 0.0),
    )
    model = get_peft_model(gpt2(dtype, **changes), config).to(dtype)
    return _jittered(model)  # adapters begin at 0, where half of their gradients vanish


class Classifier(nn.Module):
    """A small convolutional network, with norms that don't mix examples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU(),
            nn.Conv2d(6, 6, 3, stride=2, groups=3), nn.BatchNorm2d(6).eval(), nn.GELU(),
            nn.Flatten(2), nn.Conv1d(6, 4, 2), nn.Flatten(), nn.Linear(32, 5),
        )  # fmt: skip

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        self.layers[4].eval()  # its statistics are frozen, as in fine-tuning
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def _jittered(model: Any) -> Any:
    """Norms and biases begin at 1 and 0, which would hide mistakes."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


MODELS = {"t5": t5, "gpt2": gpt2}
LANGUAGE_MODELS = {**MODELS, "t5 v1.1": t5_v1_1, "llama": llama, "lora": lora}


def batch(kind: str, rows: int, seed: int = 0, length: int = 7) -> dict[str, Tensor]:
    """Random rows with padding on the right, some of it, as a collator would give them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (rows, length), generator=generator)
    lengths = torch.randint(3, length + 1, (rows,), generator=generator)
    lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = ids * mask
    if not kind.startswith("t5"):
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :2] = -100
    else:
        labels = torch.randint(2, VOCABULARY, (rows, 4), generator=generator)
        labels[1::2, 3:] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def losses(model: PreTrainedModel, rows: dict[str, Tensor]) -> Tensor:
    """One loss a row: the summed negative log-likelihood of its labels."""
    inputs = {name: rows[name] for name in ("input_ids", "attention_mask", "labels")}
    logits = model(**inputs, use_cache=False).logits
    labels = inputs["labels"]
    if not model.config.is_encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none").sum(1)
