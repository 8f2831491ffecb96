"""Pretrained models and tokenizers, of which nothing but weights, vocabularies and settings is loaded."""

from __future__ import annotations

import pickle
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)


def load_pretrained(name: str, **settings: Any) -> PreTrainedModel:
    """Load a pretrained language model, by hub name or folder; code that comes with it is refused.

    Args:
        name: The hub name or the folder.
        settings: Those of transformers' ``from_pretrained``, such as ``dtype``.

    Raises:
        ValueError: If the model needs code of its own, or its weights hold something else than tensors.
        OSError: If it can't be loaded.
    """
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        model: PreTrainedModel = auto.from_pretrained(name, trust_remote_code=False, **settings)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"expected weights in {name!r} that hold tensors alone, found a damaged file or one that would run code. "
            "Take a model with safetensors"
        ) from error
    return model


def stored_dtype(name: str) -> str:
    """Get the name of the dtype in which a pretrained model's weights are stored, as its config says; "" if not.

    Args:
        name: The hub name or the folder.
    """
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(decoder=True), "dtype", None)
    return str(dtype or "").removeprefix("torch.")
