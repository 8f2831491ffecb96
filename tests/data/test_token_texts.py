"""Texts of tokens are what a person reads: joined, they are the decoded sequence, whatever the tokenizer."""

from __future__ import annotations

import pytest
from transformers import ByT5Tokenizer

from ftrace.data.token_texts import token_texts
from helpers.awkward_prompts import KINDS, PROMPTS, tokenizer_of


def decoded(tokenizer: object, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_joined_are_the_decoded_sequence(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for awkward in PROMPTS:
        ids = [*tokenizer(f"{awkward.prompt} {awkward.answer}").input_ids, tokenizer.eos_token_id]
        texts = token_texts(tokenizer, ids)
        assert sum(count for count, _ in texts) == len(ids)
        assert "".join(text for _, text in texts) == decoded(tokenizer, ids)
        assert all(text for _, text in texts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_of_letters_keeps_its_tokens_apart(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer("Oslo lies on a fjord", add_special_tokens=False).input_ids
    assert [count for count, _ in token_texts(tokenizer, ids)].count(1) >= len(ids) - 1  # a lone space may be stripped


@pytest.mark.parametrize("kind", ["gpt-2", "llama-3"])
def test_pieces_of_a_character_share_its_text(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer("a 😀 b", add_special_tokens=False).input_ids
    texts = token_texts(tokenizer, ids)
    assert [text for _, text in texts] in (["a", " ", "😀", " b"], ["a", " 😀", " b"], ["a", " ", "😀", " ", "b"])
    assert max(count for count, _ in texts) > 1


def test_long_sequences_are_divided_like_short_ones() -> None:
    tokenizer = tokenizer_of("llama-3")
    ids = tokenizer("a 😀 b, ", add_special_tokens=False).input_ids
    assert token_texts(tokenizer, ids * 20) == token_texts(tokenizer, ids) * 20


def test_an_unfinished_character_and_nothing_at_all() -> None:
    tokenizer = ByT5Tokenizer()
    ids = tokenizer("aü", add_special_tokens=False).input_ids
    assert token_texts(tokenizer, ids) == [(1, "a"), (2, "ü")]
    assert sum(count for count, _ in token_texts(tokenizer, ids[:-1])) == 2
    assert token_texts(tokenizer, []) == []
