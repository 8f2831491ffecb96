"""What a model answers, by beam search, and whether that is right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ftrace.models import FactLM

IGNORED = -100
_SENTINEL = re.compile(r"<extra_id_\d+>")


@torch.no_grad()
def beam_answers(
    model: FactLM, batch: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase, beams: int, max_new_tokens: int
) -> list[list[str | None]]:
    """The likeliest answers of each query.

    They are ranked by their whole probability, without a length penalty. Decoder-only models get queries of one length
    at a time, so no row is padded. Where training rows have several answers, the next sentinel ends an answer, too;
    with either end it is an answer of its own.

    Args:
        model: The model, in eval mode.
        batch: Queries as the datamodule's collator gives them.
        tokenizer: The data's.
        beams: How many beams, and how many answers.
        max_new_tokens: How long an answer may be, its end included.

    Returns:
        For each query, ``beams`` texts, best first; None for one that has not come to its end.
    """
    ends = [tokenizer.eos_token_id]
    if "next_sentinel" in batch:
        ends += [token for token in batch["next_sentinel"].unique().tolist() if token != IGNORED]
    settings = {
        "num_beams": beams, "num_return_sequences": beams, "max_new_tokens": max_new_tokens, "do_sample": False,
        "length_penalty": 0.0, "early_stopping": False, "eos_token_id": ends,
        "pad_token_id": tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    }  # fmt: skip
    found: list[list[str | None]] = [[] for _ in batch["labels"]]
    for rows, inputs in _inputs(model, batch):
        sequences = model.model.generate(**inputs, **settings)
        given = 1 if model.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        texts = [_text(sequence, tokenizer, ends) for sequence in sequences[:, given:].tolist()]
        for place, row in enumerate(rows):
            found[row] = texts[place * beams : (place + 1) * beams]
    return found


def _inputs(model: FactLM, batch: Mapping[str, Tensor]) -> list[tuple[list[int], dict[str, Tensor]]]:
    """Rows that can be generated from together, and their inputs."""
    if model.model.config.is_encoder_decoder:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return [(list(range(len(inputs["input_ids"]))), inputs)]
    lengths = (batch["labels"] != IGNORED).int().argmax(1)
    groups = []
    for length in lengths.unique().tolist():
        rows = torch.nonzero(lengths == length).flatten()
        prompts = batch["input_ids"][rows, :length]
        groups.append((rows.tolist(), {"input_ids": prompts, "attention_mask": torch.ones_like(prompts)}))
    return groups


def _text(tokens: list[int], tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> str | None:
    end = next((place for place, token in enumerate(tokens) if token in ends), None)
    if end is None:
        return None
    answer = tokens[:end]
    # Skipping all special tokens would also skip the unknown word, and make a wrong answer right.
    text: Any = tokenizer.decode(answer, skip_special_tokens=False)
    return str(text)


def is_right(answer: str | None, accepted: Sequence[str]) -> bool:
    """Whether an answer is an accepted one, but for sentinels, a final dot, case, and white space.

    White space doesn't count, because some tokenizers put it between the parts of a word when they decode.

    Example:
        >>> is_right("<extra_id_0> Entity - 4.", ["4-entity", "entity-4"])
        True
    """
    return answer is not None and _normalised(answer) in {_normalised(text) for text in accepted}


def _normalised(text: str) -> str:
    return "".join(_SENTINEL.sub(" ", text).split()).casefold().removesuffix(".")
