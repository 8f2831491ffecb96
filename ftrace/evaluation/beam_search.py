"""A model's most likely answers, by beam search, and whether they are right."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ftrace.data import SENTINEL
from ftrace.models import FactLM
from ftrace.models.fact_lm import IGNORED

_LOGIT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Answer:
    """An answer of a model to a query.

    Args:
        text: None for an answer that has not ended.
        log_probability: Of the whole answer with its end, in nats; of one that has not ended, of its tokens so far.
        beginning: The text so far of an answer that has not ended.
    """

    text: str | None
    log_probability: float
    beginning: str | None = None


@torch.no_grad()
def beam_answers(
    model: FactLM, batch: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase, beams: int, max_new_tokens: int
) -> list[list[Answer]]:
    """Generate the most likely answers to each query.

    Answers are ranked by their whole probability, without a length penalty. An answer ends with the end of the sequence
    (in a chat, the special token that ends a turn) or, where training rows have several answers, with the token that
    begins the next one; its probability is the sum over both ends. Queries share a batch only if their answers end
    alike and, in a decoder-only model, the prompts are equally long; so no answer depends on the other queries of its
    batch.

    Args:
        model: The model, in eval mode.
        batch: Queries as the datamodule's collator gives them.
        tokenizer: The tokenizer of the data.
        beams: Number of answers, and of beams for each way to end.
        max_new_tokens: Most tokens of an answer, its end included.

    Returns:
        For each query, ``beams`` answers, best first.
    """
    settings = {
        "max_new_tokens": max_new_tokens, "do_sample": False, "length_penalty": 0.0, "early_stopping": False,
        "pad_token_id": tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        "return_dict_in_generate": True, "output_scores": True,
    }  # fmt: skip
    answers: list[list[Answer]] = [[] for _ in batch["labels"]]
    for rows, inputs, ends in _groups(model, batch, beams, max_new_tokens, tokenizer):
        count = max(2, beams * len(ends))  # an answer may occur once with each end; a single beam has no probability
        out = model.model.generate(**inputs, **settings, num_beams=count, num_return_sequences=count, eos_token_id=ends)
        prompt_length = 1 if model.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        sequences = out.sequences[:, prompt_length:].tolist()
        log_probabilities = out.sequences_scores.tolist()  # sums over tokens, as nothing is done about their length
        every = [_answer(*pair, tokenizer, ends) for pair in zip(sequences, log_probabilities, strict=True)]
        for index, row in enumerate(rows):
            of_row = every[index * count : (index + 1) * count]
            answers[row] = _merged(of_row, beams) if len(ends) > 1 else of_row[:beams]
    return answers


def _groups(
    model: FactLM, batch: Mapping[str, Tensor], beams: int, max_new_tokens: int, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], dict[str, Tensor], list[int]]]:
    """Yield rows that can share a batch, their inputs, and the tokens that end their answers.

    All logits of a search are kept, for the probabilities, so there are few rows in a batch where they would be large.
    """
    rows = range(len(batch["labels"]))
    lengths = [0] * len(rows)
    if not model.model.config.is_encoder_decoder:
        lengths = (batch["labels"] != IGNORED).int().argmax(1).tolist()
    ends = [(end,) for end in _ends(batch["labels"], tokenizer)]
    if "answer_other_end" in batch:
        others = [
            sorted({token for token in of_row if token != IGNORED}) for of_row in batch["answer_other_end"].tolist()
        ]
        ends = [(*end, *of_row) for end, of_row in zip(ends, others, strict=True)]
    for length, of_group in sorted(set(zip(lengths, ends, strict=True))):
        alike = [row for row in rows if (lengths[row], ends[row]) == (length, of_group)]
        row_bytes = 4 * model.model.config.vocab_size * beams * len(of_group) * max_new_tokens
        most = max(1, _LOGIT_BYTES // row_bytes)
        for start in range(0, len(alike), most):
            group = alike[start : start + most]
            if model.model.config.is_encoder_decoder:
                inputs = {name: batch[name][group] for name in ("input_ids", "attention_mask")}
            else:
                prompts = batch["input_ids"][group, :length]
                inputs = {"input_ids": prompts, "attention_mask": torch.ones_like(prompts)}
            yield group, inputs, list(of_group)


def _ends(labels: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token that ends each query's answer: the end of the sequence, or of a turn of a chat."""
    known = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {tokenizer.unk_token_id}
    last = [int(of_row[of_row != IGNORED][-1]) for of_row in labels]
    return [token if token in known else int(tokenizer.eos_token_id) for token in last]


def _answer(
    tokens: list[int], log_probability: float, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> Answer:
    """Decode the tokens of an answer up to its end."""
    end = next((position for position, token in enumerate(tokens) if token in ends), None)
    # Skipping all special tokens would also skip the unknown word, and turn a wrong answer into a right one.
    text: Any = tokenizer.decode(tokens[:end], skip_special_tokens=False)
    return Answer(None, log_probability, str(text)) if end is None else Answer(str(text), log_probability)


def _merged(answers: Sequence[Answer], count: int) -> list[Answer]:
    """Merge equal texts, adding up their probabilities, and return the most likely; unfinished ones stay separate."""
    probabilities: dict[str, float] = {}
    unfinished = [answer for answer in answers if answer.text is None]
    for answer in answers:
        if answer.text is not None:
            probabilities[answer.text] = probabilities.get(answer.text, 0.0) + math.exp(answer.log_probability)
    finished = [Answer(text, _log(probability)) for text, probability in probabilities.items()]
    best = sorted([*finished, *unfinished], key=lambda answer: -answer.log_probability)
    return [*best, *[Answer(None, -math.inf)] * count][:count]


def _log(probability: float) -> float:
    return math.log(probability) if probability else -math.inf


def is_right(answer: str | None, accepted: Sequence[str]) -> bool:
    """Tell whether an answer equals an accepted one apart from sentinels, a final dot, case, and white space.

    White space is ignored because some tokenizers put it between the parts of a word when they decode.

    Example:
        >>> is_right("<extra_id_0> Entity - 4.", ["4-entity", "entity-4"])
        True
    """
    return answer is not None and normalised(answer) in {normalised(text) for text in accepted}


def normalised(text: str) -> str:
    """Return an answer in the form in which it is compared: without sentinels, white space, case and a final dot."""
    return "".join(SENTINEL.sub(" ", text).split()).casefold().removesuffix(".")
