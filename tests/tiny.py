"""Tiny seeded models and batches that the tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, T5Config, T5ForConditionalGeneration

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
    model = GPT2LMHeadModel(GPT2Config(**{**settings, **changes})).to(dtype)
    for parameter in model.parameters():  # norms and biases begin at 1 and 0, which would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


MODELS = {"t5": t5, "gpt2": gpt2}


def batch(kind: str, rows: int, seed: int = 0, length: int = 7) -> dict[str, Tensor]:
    """Random rows with padding on the right, some of it, as a collator would give them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (rows, length), generator=generator)
    lengths = torch.randint(3, length + 1, (rows,), generator=generator)
    lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = ids * mask
    if kind == "gpt2":
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
