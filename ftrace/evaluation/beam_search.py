"""What a model answers, by beam search, and whether that is right."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ftrace.data import SENTINEL
from ftrace.models import FactLM

IGNORED = -100


@torch.no_grad()
def beam_answers(
    model: FactLM, batch: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase, beams: int, max_new_tokens: int
) -> list[list[str | None]]:
    """The likeliest answers of each query.

    They are ranked by their whole probability, without a length penalty. An answer ends with the end of the sequence
    or, where training rows have several answers, where another one follows; its probability is then that of either.
    Queries are asked together only if they are of one length, where the model is decoder-only, and their answers end
    alike; so no answer depends on the company.

    Args:
        model: The model, in eval mode.
        batch: Queries as the datamodule's collator gives them.
        tokenizer: The data's.
        beams: How many beams, and how many answers; of each end.
        max_new_tokens: How long an answer may be, its end included.

    Returns:
        For each query, ``beams`` texts, best first; None for one that has not come to its end.
    """
    settings = {
        "max_new_tokens": max_new_tokens, "do_sample": False, "length_penalty": 0.0, "early_stopping": False,
        "pad_token_id": tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        "return_dict_in_generate": True,
    }  # fmt: skip
    found: list[list[str | None]] = [[] for _ in batch["labels"]]
    for rows, inputs, others in _groups(model, batch):
        ends = [int(tokenizer.eos_token_id), *others]
        count = beams * len(ends)  # an answer may come once with each end
        several = len(ends) > 1
        settings |= {"num_beams": count, "num_return_sequences": count, "eos_token_id": ends, "output_scores": several}
        out = model.model.generate(**inputs, **settings)
        given = 1 if model.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        texts = [_text(sequence, tokenizer, ends) for sequence in out.sequences[:, given:].tolist()]
        for place, row in enumerate(rows):
            own = slice(place * count, (place + 1) * count)
            found[row] = _merged(texts[own], out.sequences_scores[own].tolist(), beams) if several else texts[own]
    return found


def _groups(
    model: FactLM, batch: Mapping[str, Tensor]
) -> Iterator[tuple[list[int], dict[str, Tensor], tuple[int, ...]]]:
    """Rows that can be generated from together, their inputs, and what ends their answers but for the end."""
    rows = range(len(batch["labels"]))
    lengths = [0] * len(rows)
    if not model.model.config.is_encoder_decoder:
        lengths = (batch["labels"] != IGNORED).int().argmax(1).tolist()
    ends: list[tuple[int, ...]] = [()] * len(rows)
    if "answer_other_end" in batch:
        of_rows = batch["answer_other_end"].tolist()
        ends = [tuple(sorted({token for token in of_row if token != IGNORED})) for of_row in of_rows]
    for length, others in sorted(set(zip(lengths, ends, strict=True))):
        group = [row for row in rows if (lengths[row], ends[row]) == (length, others)]
        if model.model.config.is_encoder_decoder:
            inputs = {name: batch[name][group] for name in ("input_ids", "attention_mask")}
        else:
            prompts = batch["input_ids"][group, :length]
            inputs = {"input_ids": prompts, "attention_mask": torch.ones_like(prompts)}
        yield group, inputs, others


def _text(tokens: list[int], tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> str | None:
    end = next((place for place, token in enumerate(tokens) if token in ends), None)
    if end is None:
        return None
    # Skipping all special tokens would also skip the unknown word, and make a wrong answer right.
    text: Any = tokenizer.decode(tokens[:end], skip_special_tokens=False)
    return str(text)


def _merged(texts: Sequence[str | None], scores: Sequence[float], count: int) -> list[str | None]:
    """The likeliest texts, each once with the probability of all its ends; what has not ended is one of its own."""
    probabilities: dict[str, float] = {}
    unfinished = []
    for text, score in zip(texts, scores, strict=True):
        if text is None:
            unfinished.append((math.exp(score), text))
        else:
            probabilities[text] = probabilities.get(text, 0.0) + math.exp(score)
    every = [*((probability, text) for text, probability in probabilities.items()), *unfinished]
    best = [text for _, text in sorted(every, key=lambda one: -one[0])]
    return [*best, *[None] * count][:count]


def is_right(answer: str | None, accepted: Sequence[str]) -> bool:
    """Whether an answer is an accepted one, but for sentinels, a final dot, case, and white space.

    White space doesn't count, because some tokenizers put it between the parts of a word when they decode.

    Example:
        >>> is_right("<extra_id_0> Entity - 4.", ["4-entity", "entity-4"])
        True
    """
    return answer is not None and _normalised(answer) in {_normalised(text) for text in accepted}


def _normalised(text: str) -> str:
    return "".join(SENTINEL.sub(" ", text).split()).casefold().removesuffix(".")
