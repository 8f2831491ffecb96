"""Tokenization of prompts for causal tracing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from ftrace.data.collators import DecoderOnlyCollator, make_collator
from ftrace.data.continuations import ContinuedText, tokenize_continued
from ftrace.data.fact_prompts import FactPrompt
from ftrace.data.subject_spans import is_blank, require_offsets, subject_characters, tokens_of_subject
from ftrace.data.text import SENTINEL, continuation, split_sentinel

_MASK = "<extra_id_0>"
_BLANK = "␣"


@dataclass(frozen=True)
class TokenizedPrompt:
    """Prompt in tokens.

    Args:
        input_ids: The model's input: an encoder's, or a decoder-only model's text up to the answer.
        tokens: ``input_ids`` in readable form.
        subject: Half-open range of the subject's positions in ``input_ids``.
        decoder_ids: Input of an encoder-decoder's decoder before the answer; empty for a decoder-only model.
        decoder_tokens: ``decoder_ids`` in readable form.
        answers: Tokens of each accepted answer, without the end of the sequence, the prompt's own first.
        foil: Tokens of the foil.
    """

    prompt: FactPrompt
    input_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    subject: tuple[int, int]
    decoder_ids: tuple[int, ...]
    decoder_tokens: tuple[str, ...]
    answers: tuple[tuple[int, ...], ...]
    foil: tuple[int, ...] | None = None


class _Pieces(NamedTuple):
    """Prompt and answers, tokenized in the form that a kind of model expects.

    Args:
        text: The text that the subject is in.
        front: Number of tokens in ``given`` before the text's own.
        offsets: Half-open range of characters of each of the text's tokens.
        answers_from: Position of the character where answers begin, if they continue the text; else infinity.
        given: The model's input.
        decoder: The decoder's input after its start token; empty for a decoder-only model.
        answers: Tokens of each answer.
    """

    text: str
    front: int
    offsets: list[tuple[int, int]]
    answers_from: float
    given: list[int]
    decoder: list[int]
    answers: list[list[int]]


def tokenize_prompt(
    prompt: FactPrompt,
    tokenizer: PreTrainedTokenizerBase,
    *,
    decoder_start: int | None = None,
    as_trained: bool = False,
) -> TokenizedPrompt:
    """Tokenize a prompt for a model.

    By default in the form that pretrained models expect. A decoder-only model continues the text, which begins with the
    tokenizer's special tokens, if it has any; an encoder-decoder such as T5 fills in a mask, which is appended to a
    prompt that has none. With ``as_trained``, in the form of the collators: that of the query's own targets.

    In both forms, a decoder-only model gets a prompt with a mask as from its collator: the text, the mask again, then
    the answer. Without a mask, text and answer are tokenized as one text
    (:func:`ftrace.data.continuations.tokenize_continued`).

    Of several accepted answers with the same tokens, the first is kept. Accepted answers other than the prompt's own
    are left out if they consist of unknown tokens only: the model can't produce them.

    Args:
        tokenizer: The model's; must be a fast one.
        decoder_start: The token that an encoder-decoder's decoder starts with; None for a decoder-only model.
        as_trained: Whether the model was trained by ftrace, on rows like the prompt.

    Raises:
        ValueError: If the prompt can't be traced: it has no answer; it has no subject, or not exactly once; its own
            answer or the foil has no tokens that the tokenizer knows; answers have different tokens before them; an
            answer's first token holds a part of the subject; or the foil is an answer.
    """
    require_offsets(tokenizer)
    answers = _texts_to_score(prompt)
    characters = subject_characters(prompt.prompt, prompt.subject, prompt.subject_start)
    pieces = _pieces(prompt, tokenizer, answers, decoder_start is not None, as_trained)
    if pieces.answers_from < characters[1]:
        raise ValueError(
            f"subject {prompt.subject.strip()!r}: expected tokens of its own, found one that it shares with the answer "
            f"{answers[0]!r}. End the prompt with other words"
        )
    of_text = pieces.given[pieces.front : pieces.front + len(pieces.offsets)]
    first, end = tokens_of_subject(tokenizer, of_text, pieces.offsets, pieces.text, characters)
    unknown = tokenizer.unk_token_id
    accepted: dict[tuple[int, ...], str] = {}
    foil = None
    for number, (answer, tokens) in enumerate(zip(answers, pieces.answers, strict=True)):
        is_foil = number == len(prompt.answers)
        if any(token != unknown and not is_blank(tokenizer, token) for token in tokens):
            if is_foil:
                foil = tuple(tokens)
            else:
                accepted.setdefault(tuple(tokens), answer)
        elif is_foil or not number:
            raise ValueError(
                f"{'foil' if is_foil else 'answer'} {answer!r}: expected tokens that the tokenizer knows, found "
                f"{[_name(tokenizer, token) for token in tokens]}. Spell it in words that it knows, or take another "
                "tokenizer"
            )
    if foil in accepted:
        raise ValueError(
            f"foil {prompt.foil!r}: expected another answer, found the tokens of the answer {accepted[foil]!r}. Take "
            "another one, or leave it out"
        )
    decoder = [] if decoder_start is None else [decoder_start, *pieces.decoder]
    return TokenizedPrompt(
        prompt,
        tuple(pieces.given),
        tuple(_labels(tokenizer, pieces)),
        (pieces.front + first, pieces.front + end),
        tuple(decoder),
        tuple(_name(tokenizer, token) for token in decoder),
        tuple(accepted),
        foil,
    )


def _texts_to_score(prompt: FactPrompt) -> list[str]:
    """Return the accepted answers, then the foil, if there is one."""
    if not prompt.answers or not prompt.answers[0].strip():
        raise ValueError("no answer: expected the words that the prompt asks for, found none. Give them as answer")
    texts = [*prompt.answers, *([] if prompt.foil is None else [prompt.foil])]
    if not all(text.strip() for text in texts):
        raise ValueError(f"answers and foil: expected text in each, found {texts}. Leave the empty one out")
    return texts


def _pieces(
    prompt: FactPrompt, tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], has_decoder: bool, as_trained: bool
) -> _Pieces:
    if prompt.seam is not None:
        begin = [] if prompt.is_chat else DecoderOnlyCollator(tokenizer).begin
        rests = [answer if not answer[:1].strip() else prompt.seam + answer for answer in answers]
        return _continue(prompt.prompt, begin, tokenizer, answers, rests)
    mask = SENTINEL.search(prompt.prompt)
    sentinel, text = mask.group() if mask else "", prompt.prompt
    if as_trained and prompt.targets is not None:
        sentinel = split_sentinel(prompt.targets)[0]
    elif has_decoder and not sentinel:
        sentinel, text = _MASK, text + continuation(text, _MASK)
    if as_trained or (sentinel and not has_decoder):
        return _as_trained(text, sentinel, tokenizer, answers, has_decoder)
    return (_fill_in if has_decoder else _go_on)(text, sentinel, tokenizer, answers)


def _as_trained(
    text: str, sentinel: str, tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], has_decoder: bool
) -> _Pieces:
    """Tokenize in the form of the collators."""
    collate = make_collator(tokenizer, "encoder-decoder" if has_decoder else "decoder-only")
    if isinstance(collate, DecoderOnlyCollator) and not sentinel:
        return _continue(text, collate.begin, tokenizer, answers, [continuation(text, answer) for answer in answers])
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    rests = [f" {answer}" if sentinel else answer for answer in answers]
    before, of_answers = _split(tokenizer, sentinel, rests, answers)
    if isinstance(collate, DecoderOnlyCollator):
        given = [*collate.begin, *tokens, *before.given]
        return _Pieces(text, len(collate.begin), offsets, math.inf, given, [], of_answers)
    return _Pieces(text, 0, offsets, math.inf, [*tokens, int(tokenizer.eos_token_id)], before.given, of_answers)


def _fill_in(text: str, sentinel: str, tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]) -> _Pieces:
    """Tokenize for a pretrained encoder-decoder, which fills in a mask."""
    first = _tokens(tokenizer, sentinel)
    if len(first) != 1 or first[0] == tokenizer.unk_token_id:
        raise ValueError(
            f"expected a tokenizer with {sentinel} as one token, as T5's, found "
            f"{[_name(tokenizer, token) for token in first]}. Take a model that fills in such masks"
        )
    given = list(tokenizer(text)["input_ids"])
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    front = _front(given, list(encoded["input_ids"]), text)
    before, of_answers = _split(tokenizer, sentinel, [f" {answer}" for answer in answers], answers)
    return _Pieces(text, front, list(encoded["offset_mapping"]), math.inf, given, before.given, of_answers)


def _go_on(text: str, sentinel: str, tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]) -> _Pieces:
    """Tokenize for a pretrained decoder-only model, which continues the text."""
    given = list(tokenizer(text)["input_ids"])
    begin = given[: _front(given, _tokens(tokenizer, text), text)]
    return _continue(text, begin, tokenizer, answers, [continuation(text, answer) for answer in answers])


def _continue(
    text: str, begin: Sequence[int], tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], rests: Sequence[str]
) -> _Pieces:
    """Tokenize a text with what follows it for each answer, after the tokens that texts begin with."""
    before, of_answers = _split(tokenizer, text, rests, answers)
    count = len(before.given)
    left = before.offsets[count][0] if count < len(before.offsets) else math.inf
    return _Pieces(text, len(begin), before.offsets[:count], left, [*begin, *before.given], [], of_answers)


def _split(
    tokenizer: PreTrainedTokenizerBase, before: str, rests: Sequence[str], answers: Sequence[str]
) -> tuple[ContinuedText, list[list[int]]]:
    """Tokenize a text with each of several answers.

    Args:
        tokenizer: A fast one.
        before: The text before all answers.
        rests: What follows it: each answer, with the space before it, if any.
        answers: The answers' names in errors.

    Returns:
        The tokens of the text with the first answer, and the tokens of each answer.

    Raises:
        ValueError: If the text has other tokens before another answer.
    """
    first, *others = tokenize_continued(tokenizer, [before] * len(rests), rests)
    for answer, other in zip(answers[1:], others, strict=True):
        if other.given != first.given:
            raise ValueError(
                f"answer {answer!r}: expected the tokens before it that stand before {answers[0]!r}, found others: a "
                f"token holds a part of {before!r} and of an answer. End the prompt without a space, or leave the "
                "answer out"
            )
    return first, [continued.answer for continued in (first, *others)]


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _front(given: list[int], plain: list[int], text: str) -> int:
    """Return how many special tokens the tokenizer puts before a text's own."""
    for front in range(len(given) - len(plain) + 1):
        if given[front : front + len(plain)] == plain:
            return front
    raise ValueError(
        f"expected a tokenizer that puts its special tokens before and after a text's own, found {given} and {plain} "
        f"for {text!r}. Take another one"
    )


def _labels(tokenizer: PreTrainedTokenizerBase, pieces: _Pieces) -> list[str]:
    """Return the part of the text that each input token is from; special tokens by their names."""
    labels = [_name(tokenizer, token) for token in pieces.given]
    for position, (left, right) in enumerate(pieces.offsets, pieces.front):
        if left < right and not is_blank(tokenizer, pieces.given[position]):
            labels[position] = pieces.text[left:right].strip()
    return labels


def _name(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return the text of a single token."""
    text: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return text.strip() or _BLANK
