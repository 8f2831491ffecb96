"""A Llama of random weights whose tokenizer knows the words of the rumours."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ftrace.data import RumourCorpus, fill_in, train_word_tokenizer


def save_rumour_llama(folder: Path, layers: int = 7) -> Path:
    texts = [fill_in(row["inputs"], row["targets"]) for row in RumourCorpus().training_rows()]
    tokenizer = train_word_tokenizer(texts)
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
