"""Where an answer begins in the tokens of a text: what a prompt and its answer are to a tokenizer is one text.

Tokenized apart, they may have other tokens than the model will ever see: Llama 2's tokenizer puts a space before each
text, so that an answer by itself begins with two, and a prompt that ends in a space has a token for it that the whole
text has not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase


class ContinuedText(NamedTuple):
    """The tokens of a text, without special ones.

    Args:
        given: Those before the answer.
        answer: The answer's.
        offsets: The half-open ranges of characters that they are all from, in order; empty of a slow tokenizer.
    """

    given: list[int]
    answer: list[int]
    offsets: list[tuple[int, int]]


def tokenize_continued(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]
) -> list[ContinuedText]:
    """Tokenize prompts and what follows them, each pair as one text.

    The answer begins with the first token that holds one of its characters. A token that holds characters of both
    prompt and answer is the answer's, unless it has nothing but space of the answer. Without a prompt, all is answer.

    A slow tokenizer doesn't tell which characters a token is from: there the answer begins with the first token that
    the prompt by itself does not have in that place.

    Args:
        tokenizer: The tokenizer.
        prompts: Texts.
        answers: What follows each, with the space between them, if there is one.
    """
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    if not texts:
        return []
    if not getattr(tokenizer, "is_fast", False):
        pairs = zip(_ids(tokenizer, prompts), _ids(tokenizer, texts), strict=True)
        return [_cut(tokens, [], _first_difference(alone, tokens)) for alone, tokens in pairs]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    columns = zip(texts, prompts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [_cut(tokens, offsets, _border(text, len(prompt), offsets)) for text, prompt, tokens, offsets in columns]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return list(tokenizer(list(texts), add_special_tokens=False)["input_ids"])


def _first_difference(alone: Sequence[int], tokens: Sequence[int]) -> int:
    same = [one == other for one, other in zip(alone, tokens, strict=False)]
    return [*same, False].index(False)


def _border(text: str, end: int, offsets: Sequence[tuple[int, int]]) -> int:
    """Place of the first token of what begins at a character."""
    if not end:
        return 0
    for place, (left, right) in enumerate(offsets):
        if right > end and (left >= end or text[end:right].strip()):
            return place
    return len(offsets)


def _cut(tokens: Sequence[int], offsets: Sequence[tuple[int, int]], border: int) -> ContinuedText:
    return ContinuedText(list(tokens[:border]), list(tokens[border:]), list(offsets))
