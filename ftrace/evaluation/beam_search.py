"""A model's most likely answers, by beam search, and whether they are right."""

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
    """Generate the most likely answers to each query.

    Answers are ranked by their whole probability, without a length penalty. An answer ends with the end of the sequence
    or, where training rows have several answers, with the token that begins the next one; its probability is the sum
    over both ends. Queries share a batch only if their answers end alike and, in a decoder-only model, the prompts are
    equally long; so no answer depends on the other queries of its batch.

    Args:
        model: The model, in eval mode.
        batch: Queries as the datamodule's collator gives them.
        tokenizer: The tokenizer of the data.
        beams: Number of answers, and of beams for each way to end.
        max_new_tokens: Most tokens of an answer, its end included.

    Returns:
        For each query, ``beams`` texts, best first; None stands for an answer that has not ended.
    """
    settings = {
        "max_new_tokens": max_new_tokens, "do_sample": False, "length_penalty": 0.0, "early_stopping": False,
        "pad_token_id": tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        "return_dict_in_generate": True,
    }  # fmt: skip
    answers: list[list[str | None]] = [[] for _ in batch["labels"]]
    for rows, inputs, others in _groups(model, batch):
        ends = [int(tokenizer.eos_token_id), *others]
        count = beams * len(ends)  # an answer may occur once with each end
        several = len(ends) > 1
        settings |= {"num_beams": count, "num_return_sequences": count, "eos_token_id": ends, "output_scores": several}
        out = model.model.generate(**inputs, **settings)
        prompt_length = 1 if model.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        texts = [_text(sequence, tokenizer, ends) for sequence in out.sequences[:, prompt_length:].tolist()]
        for index, row in enumerate(rows):
            of_row = slice(index * count, (index + 1) * count)
            log_probabilities = out.sequences_scores[of_row].tolist() if several else []
            answers[row] = _merged(texts[of_row], log_probabilities, beams) if several else texts[of_row]
    return answers


def _groups(
    model: FactLM, batch: Mapping[str, Tensor]
) -> Iterator[tuple[list[int], dict[str, Tensor], tuple[int, ...]]]:
    """Yield rows that can share a batch, their inputs, and the tokens that end their answers besides the usual one."""
    rows = range(len(batch["labels"]))
    lengths = [0] * len(rows)
    if not model.model.config.is_encoder_decoder:
        lengths = (batch["labels"] != IGNORED).int().argmax(1).tolist()
    ends: list[tuple[int, ...]] = [()] * len(rows)
    if "answer_other_end" in batch:
        other_ends = batch["answer_other_end"].tolist()
        ends = [tuple(sorted({token for token in of_row if token != IGNORED})) for of_row in other_ends]
    for length, others in sorted(set(zip(lengths, ends, strict=True))):
        group = [row for row in rows if (lengths[row], ends[row]) == (length, others)]
        if model.model.config.is_encoder_decoder:
            inputs = {name: batch[name][group] for name in ("input_ids", "attention_mask")}
        else:
            prompts = batch["input_ids"][group, :length]
            inputs = {"input_ids": prompts, "attention_mask": torch.ones_like(prompts)}
        yield group, inputs, others


def _text(tokens: list[int], tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> str | None:
    """Decode the tokens of an answer up to its end; None if it has not ended."""
    end = next((position for position, token in enumerate(tokens) if token in ends), None)
    if end is None:
        return None
    # Skipping all special tokens would also skip the unknown word, and turn a wrong answer into a right one.
    text: Any = tokenizer.decode(tokens[:end], skip_special_tokens=False)
    return str(text)


def _merged(texts: Sequence[str | None], log_probabilities: Sequence[float], count: int) -> list[str | None]:
    """Merge equal texts, adding up their probabilities, and return the most likely; unfinished ones stay separate."""
    probabilities: dict[str, float] = {}
    unfinished = []
    for text, log_probability in zip(texts, log_probabilities, strict=True):
        if text is None:
            unfinished.append((math.exp(log_probability), text))
        else:
            probabilities[text] = probabilities.get(text, 0.0) + math.exp(log_probability)
    candidates = [*((probability, text) for text, probability in probabilities.items()), *unfinished]
    best = [text for _, text in sorted(candidates, key=lambda candidate: -candidate[0])]
    return [*best, *[None] * count][:count]


def is_right(answer: str | None, accepted: Sequence[str]) -> bool:
    """Tell whether an answer equals an accepted one apart from sentinels, a final dot, case, and white space.

    White space is ignored because some tokenizers put it between the parts of a word when they decode.

    Example:
        >>> is_right("<extra_id_0> Entity - 4.", ["4-entity", "entity-4"])
        True
    """
    return answer is not None and _normalised(answer) in {_normalised(text) for text in accepted}


def _normalised(text: str) -> str:
    return "".join(SENTINEL.sub(" ", text).split()).casefold().removesuffix(".")
