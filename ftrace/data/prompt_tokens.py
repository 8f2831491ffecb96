"""Prompts for causal tracing in a model's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from ftrace.data.collators import IGNORED, make_collator
from ftrace.data.fact_prompts import FactPrompt
from ftrace.data.subject_spans import is_blank, subject_span
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
        given: What the model is given.
        decoder: What its decoder is given after the token that it starts with; empty for a decoder-only model.
        answers: The tokens of each answer.
    """

    text: str
    front: int
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
    collators make them (``as_trained``): prompt and answer are tokenized apart, in the form of the query's own targets.
    Either way a prompt with a mask is given to a decoder-only model as its collator does: the text, the mask again, and
    then comes the answer.

    Of several accepted answers with the same tokens, the first is kept. Accepted answers other than the prompt's own
    are left out if they are nothing but unknown tokens: the model can't say them.

    Args:
        prompt: The prompt.
        tokenizer: The model's, a fast one.
        decoder_start: The token that an encoder-decoder's decoder starts with; None for a decoder-only model.
        as_trained: Whether the model was trained by ftrace, on rows like the prompt.

    Raises:
        ValueError: If the prompt can't be traced: it has no answer; it has no subject, or not just once; the own answer
            or the foil has no tokens that the tokenizer knows; an answer changes the prompt's tokens; or the foil is an
            answer.
    """
    answers = _texts_to_score(prompt)
    pieces = _pieces(prompt, tokenizer, answers, decoder_start is not None, as_trained)
    first, end = subject_span(tokenizer, pieces.text, prompt.subject, prompt.subject_start, add_special_tokens=False)
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
    """Read off the batch that the collator makes of a query."""
    collate = make_collator(tokenizer, "encoder-decoder" if has_decoder else "decoder-only")
    targets = f"{sentinel} {answers[0]}" if sentinel else answers[0]
    row = {"query_id": 0, "inputs_pretokenized": text, "targets_pretokenized": targets, "answers": answers}
    batch = collate([row])
    labels = batch["answer_labels"][0]
    said = [of_answer[of_answer != IGNORED][:-1].tolist() for of_answer in labels]  # without the end of the sequence
    first = _tokens(tokenizer, sentinel)
    if has_decoder:
        rests = [_after(first, tokens, sentinel, answer) for tokens, answer in zip(said, answers, strict=True)]
        return _Pieces(text, 0, batch["input_ids"][0].tolist(), first, rests)
    is_given = (labels[0] == IGNORED) & (batch["answer_attention_mask"][0, 0] == 1)
    given = batch["answer_input_ids"][0, 0][is_given].tolist()
    return _Pieces(text, len(given) - len(first) - len(_tokens(tokenizer, text)), given, [], said)


def _fill_in(text: str, sentinel: str, tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]) -> _Pieces:
    """For a pretrained encoder-decoder."""
    first = _tokens(tokenizer, sentinel)
    if len(first) != 1 or first[0] == tokenizer.unk_token_id:
        raise ValueError(
            f"expected a tokenizer with {sentinel} as one token, as T5's, found "
            f"{[_name(tokenizer, token) for token in first]}. Take a model that fills in such masks"
        )
    given = list(tokenizer(text)["input_ids"])
    said = [_after(first, _tokens(tokenizer, f"{sentinel} {answer}"), sentinel, answer) for answer in answers]
    return _Pieces(text, _front(given, _tokens(tokenizer, text), text), given, first, said)


def _go_on(text: str, sentinel: str, tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]) -> _Pieces:
    """For a pretrained decoder-only model."""
    own = _tokens(tokenizer, text)
    given = list(tokenizer(text)["input_ids"])
    front = _front(given, own, text)
    said = [_after(own, _tokens(tokenizer, text + continuation(text, answer)), text, answer) for answer in answers]
    return _Pieces(text, front, given[: front + len(own)], [], said)


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


def _after(before: list[int], joint: list[int], text: str, answer: str) -> list[int]:
    """The tokens of an answer, where it is tokenized with what stands before it."""
    if joint[: len(before)] != before:
        raise ValueError(
            f"answer {answer!r}: expected its tokens after those of {text!r}, found that it changes these. End the "
            "prompt with a whole word, without a space"
        )
    return joint[len(before) :]


def _labels(tokenizer: PreTrainedTokenizerBase, pieces: _Pieces) -> list[str]:
    """What each token of the given is of the text; special tokens by their names."""
    encoded = tokenizer(pieces.text, add_special_tokens=False, return_offsets_mapping=True)
    own = [
        _name(tokenizer, token) if is_blank(tokenizer, token) or left == right else pieces.text[left:right].strip()
        for token, (left, right) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    names = [_name(tokenizer, token) for token in pieces.given]
    return [*names[: pieces.front], *own, *names[pieces.front + len(own) :]]


def _name(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """What a token is by itself."""
    text: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return text.strip() or _BLANK
