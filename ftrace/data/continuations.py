"""Tokenization of a prompt and its answer as one text, and where the answer begins in its tokens.

Tokenized separately, they may have tokens that the model never sees: Llama 2's tokenizer puts a space before each text,
so that an answer by itself begins with two, and a prompt that ends in a space has a token for it that the whole text
doesn't have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase


class ContinuedText(NamedTuple):
    """Tokens of a text, without special ones.

    Args:
        given: Those before the answer.
        answer: The answer's.
        offsets: The half-open ranges of characters of all tokens, in order; empty for a slow tokenizer.
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

    A slow tokenizer doesn't tell which characters a token is from: there the answer begins at the first token that
    differs from the prompt's own tokens.

    Args:
        tokenizer: Fast or slow.
        prompts: Texts; may be empty.
        answers: What follows each, including any space between them.
    """
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    if not texts:
        return []
    if not getattr(tokenizer, "is_fast", False):
        pairs = zip(_ids(tokenizer, prompts), _ids(tokenizer, texts), strict=True)
        return [_cut(tokens, [], _first_difference(alone, tokens)) for alone, tokens in pairs]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    columns = zip(texts, prompts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [_cut(tokens, offsets, border(text, len(prompt), offsets)) for text, prompt, tokens, offsets in columns]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return list(tokenizer(list(texts), add_special_tokens=False)["input_ids"])


def _first_difference(alone: Sequence[int], tokens: Sequence[int]) -> int:
    same = [token == whole for token, whole in zip(alone, tokens, strict=False)]
    return [*same, False].index(False)


def border(text: str, end: int, offsets: Sequence[tuple[int, int]]) -> int:
    """Return the position of the first token of what begins at a character of a text.

    Args:
        text: The whole text.
        end: The character.
        offsets: The half-open range of characters of each token.
    """
    if not end:
        return 0
    for position, (left, right) in enumerate(offsets):
        if right > end and (left >= end or text[end:right].strip()):
            return position
    return len(offsets)


def _cut(tokens: Sequence[int], offsets: Sequence[tuple[int, int]], begin: int) -> ContinuedText:
    return ContinuedText(list(tokens[:begin]), list(tokens[begin:]), list(offsets))
