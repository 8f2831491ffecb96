"""Prompts for causal tracing in a model's tokens."""

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
    """A prompt in tokens.

    Args:
        prompt: The prompt.
        input_ids: What the model is given: an encoder's input, or a decoder-only model's text up to the answer.
        tokens: The same, readable.
        subject: Half-open range of the subject's places in ``input_ids``.
        decoder_ids: What an encoder-decoder's decoder is given before the answer; empty for a decoder-only model.
        decoder_tokens: The same, readable.
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
    """What a way of tokenizing makes of a prompt.

    Args:
        text: The text that the subject is in.
        front: How many tokens stand before the text's own in ``given``.
        offsets: The half-open ranges of the text's characters that its own tokens are from.
        answers_from: The character that answers begin with, where they go on with the text.
        given: What the model is given.
        decoder: What its decoder is given after the token that it starts with; empty for a decoder-only model.
        answers: The tokens of each answer.
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
    """A prompt in a model's tokens.

    As pretrained models expect them: a decoder-only model goes on with the text, after the tokens that its tokenizer
    begins texts with; an encoder-decoder, as T5, fills in a mask, which is put after a prompt that has none. As our
    collators make them (``as_trained``): in the form of the query's own targets. Either way a prompt with a mask is
    given to a decoder-only model as its collator does: the text, the mask again, and then comes the answer; and without
    a mask, text and answer are tokenized as one (:func:`ftrace.data.continuations.tokenize_continued`).

    Of several accepted answers with the same tokens, the first is kept. Accepted answers other than the prompt's own
    are left out if they are nothing but unknown tokens: the model can't say them.

    Args:
        prompt: The prompt.
        tokenizer: The model's, a fast one.
        decoder_start: The token that an encoder-decoder's decoder starts with; None for a decoder-only model.
        as_trained: Whether the model was trained by ftrace, on rows like the prompt.

    Raises:
        ValueError: If the prompt can't be traced: it has no answer; it has no subject, or not just once; the own answer
            or the foil has no tokens that the tokenizer knows; answers have other tokens before them; an answer's first
            token holds a part of the subject; or the foil is an answer.
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
    own = pieces.given[pieces.front : pieces.front + len(pieces.offsets)]
    first, end = tokens_of_subject(tokenizer, own, pieces.offsets, pieces.text, characters)
    unknown = tokenizer.unk_token_id
    accepted: dict[tuple[int, ...], str] = {}
    foil = None
    for place, (answer, tokens) in enumerate(zip(answers, pieces.answers, strict=True)):
        is_foil = place == len(prompt.answers)
        if any(token != unknown and not is_blank(tokenizer, token) for token in tokens):
            if is_foil:
                foil = tuple(tokens)
            else:
                accepted.setdefault(tuple(tokens), answer)
        elif is_foil or not place:
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
    """The accepted answers, and the foil, if there is one."""
    if not prompt.answers or not prompt.answers[0].strip():
        raise ValueError("no answer: expected the words that the prompt asks for, found none. Give them as answer")
    texts = [*prompt.answers, *([] if prompt.foil is None else [prompt.foil])]
    if not all(text.strip() for text in texts):
        raise ValueError(f"answers and foil: expected text in each, found {texts}. Leave the empty one out")
    return texts


def _pieces(
    prompt: FactPrompt, tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], has_decoder: bool, as_trained: bool
) -> _Pieces:
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
    """As the collator makes a query's rows."""
    collate = make_collator(tokenizer, "encoder-decoder" if has_decoder else "decoder-only")
    if isinstance(collate, DecoderOnlyCollator) and not sentinel:
        return _continue(text, collate.begin, tokenizer, answers)
    own = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens, offsets = list(own["input_ids"]), list(own["offset_mapping"])
    before, said = _split(tokenizer, sentinel, [f" {one}" if sentinel else one for one in answers], answers)
    if isinstance(collate, DecoderOnlyCollator):
        given = [*collate.begin, *tokens, *before.given]
        return _Pieces(text, len(collate.begin), offsets, math.inf, given, [], said)
    return _Pieces(text, 0, offsets, math.inf, [*tokens, int(tokenizer.eos_token_id)], before.given, said)


def _fill_in(text: str, sentinel: str, tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]) -> _Pieces:
    """For a pretrained encoder-decoder."""
    first = _tokens(tokenizer, sentinel)
    if len(first) != 1 or first[0] == tokenizer.unk_token_id:
        raise ValueError(
            f"expected a tokenizer with {sentinel} as one token, as T5's, found "
            f"{[_name(tokenizer, token) for token in first]}. Take a model that fills in such masks"
        )
    given = list(tokenizer(text)["input_ids"])
    own = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    front = _front(given, list(own["input_ids"]), text)
    before, said = _split(tokenizer, sentinel, [f" {answer}" for answer in answers], answers)
    return _Pieces(text, front, list(own["offset_mapping"]), math.inf, given, before.given, said)


def _go_on(text: str, sentinel: str, tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]) -> _Pieces:
    """For a pretrained decoder-only model."""
    given = list(tokenizer(text)["input_ids"])
    return _continue(text, given[: _front(given, _tokens(tokenizer, text), text)], tokenizer, answers)


def _continue(text: str, begin: Sequence[int], tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]) -> _Pieces:
    """A text after the tokens that texts begin with, and the answers that go on with it."""
    before, said = _split(tokenizer, text, [continuation(text, answer) for answer in answers], answers)
    count = len(before.given)
    left = before.offsets[count][0] if count < len(before.offsets) else math.inf
    return _Pieces(text, len(begin), before.offsets[:count], left, [*begin, *before.given], [], said)


def _split(
    tokenizer: PreTrainedTokenizerBase, before: str, rests: Sequence[str], answers: Sequence[str]
) -> tuple[ContinuedText, list[list[int]]]:
    """What stands before all answers, with the first of them, and the tokens of each.

    Args:
        tokenizer: The tokenizer.
        before: What stands there.
        rests: What follows it: each answer, and the space before it.
        answers: Their names in errors.

    Raises:
        ValueError: If it has other tokens before another answer.
    """
    first, *others = tokenize_continued(tokenizer, [before] * len(rests), rests)
    for answer, other in zip(answers[1:], others, strict=True):
        if other.given != first.given:
            raise ValueError(
                f"answer {answer!r}: expected the tokens before it that stand before {answers[0]!r}, found others: a "
                f"token holds a part of {before!r} and of an answer. End the prompt without a space, or leave the "
                "answer out"
            )
    return first, [one.answer for one in (first, *others)]


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _front(given: list[int], own: list[int], text: str) -> int:
    """How many special tokens the tokenizer puts before a text's own."""
    for front in range(len(given) - len(own) + 1):
        if given[front : front + len(own)] == own:
            return front
    raise ValueError(
        f"expected a tokenizer that puts its special tokens before and after a text's own, found {given} and {own} for "
        f"{text!r}. Take another one"
    )


def _labels(tokenizer: PreTrainedTokenizerBase, pieces: _Pieces) -> list[str]:
    """What each token of the given is of the text; special tokens by their names."""
    found = [_name(tokenizer, token) for token in pieces.given]
    for place, (left, right) in enumerate(pieces.offsets, pieces.front):
        if left < right and not is_blank(tokenizer, pieces.given[place]):
            found[place] = pieces.text[left:right].strip()
    return found


def _name(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """What a token is by itself."""
    text: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return text.strip() or _BLANK
