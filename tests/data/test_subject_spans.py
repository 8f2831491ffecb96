"""The subject's tokens, for every kind of tokenizer, against what the tokens decode to."""

from __future__ import annotations

import unicodedata
from itertools import accumulate, takewhile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ftrace.data import subject_span
from helpers.awkward_prompts import KINDS, PROMPTS, tokenizer_of


def plain(text: str) -> str:
    """Without what tokenizers change or drop: case, accents, how characters are composed, joiners, spaces."""
    parts = unicodedata.normalize("NFKD", text.casefold().replace("##", ""))
    return "".join(one for one in parts if unicodedata.category(one) not in ("Mn", "Cf") and not one.isspace())


def span_by_decoding(tokenizer: PreTrainedTokenizerFast, text: str, subject: str, start: int) -> tuple[int, int]:
    """By how much of the text its first tokens decode to: no offsets."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    decoded = [plain(tokenizer.decode(ids[:end])) for end in range(len(ids) + 1)]
    assert decoded[-1] == plain(text)
    # A character whose last byte is missing may spoil those before it: what was said once, is said.
    alike = (takewhile(lambda pair: pair[0] == pair[1], zip(one, decoded[-1], strict=False)) for one in decoded)
    said = [*accumulate((sum(1 for _ in pairs) for pairs in alike), max)]
    before, whole = len(plain(text[:start])), len(plain(text[: start + len(subject)]))
    end = next(end for end, length in enumerate(said) if length >= whole)
    first = max((place + 1 for place, length in enumerate(said) if length < before), default=0)
    if first and said[first] > before:
        first -= 1  # one token holds the subject's beginning and what stands before it
    while not plain(tokenizer.decode([ids[first]])):
        first += 1
    return first, end


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("awkward", PROMPTS, ids=lambda awkward: awkward.prompt)
def test_the_span_is_what_decodes_to_the_subject(kind: str, awkward: Any) -> None:
    tokenizer, text, subject = tokenizer_of(kind), awkward.prompt, awkward.subject
    start = text.rindex(subject)
    expected = span_by_decoding(tokenizer, text, subject, start)
    assert subject_span(tokenizer, text, subject, add_special_tokens=False) == expected
    assert subject_span(tokenizer, text, subject, start, add_special_tokens=False) == expected
    with_special = tokenizer(text).input_ids
    first, end = subject_span(tokenizer, text, subject)
    in_front = int(with_special[0] == tokenizer.bos_token_id)
    assert (first - in_front, end - in_front) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_no_shorter_span_decodes_to_the_subject(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for awkward in PROMPTS:
        ids = tokenizer(awkward.prompt, add_special_tokens=False).input_ids
        first, end = subject_span(tokenizer, awkward.prompt, awkward.subject, add_special_tokens=False)
        found = plain(tokenizer.decode(ids[first:end]))
        assert plain(awkward.subject) in found
        assert plain(awkward.subject) not in plain(tokenizer.decode(ids[first + 1 : end]))
        assert plain(awkward.subject) not in plain(tokenizer.decode(ids[first : end - 1]))


WORDS = sorted({word for awkward in PROMPTS for word in awkward.prompt.replace('"', "").split(" ") if word})


@given(
    st.lists(st.sampled_from(WORDS), max_size=4),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=3),
    st.lists(st.sampled_from(WORDS), max_size=4),
    st.sampled_from(["", " ", '"', "  ", "("]),
    st.sampled_from(["", "'s", ",", '"', ".", ")", "  "]),
    st.sampled_from([kind for kind in KINDS if not kind.startswith("words")]),
)
@settings(max_examples=300, derandomize=True, deadline=None)
def test_any_subject_in_any_text(
    before: list[str], subject: list[str], after: list[str], opening: str, closing: str, kind: str
) -> None:
    tokenizer, wanted = tokenizer_of(kind), " ".join(subject)
    head = "".join(f"{word} " for word in before) + opening
    text = " ".join([f"{head}{wanted}{closing}", *after])
    expected = span_by_decoding(tokenizer, text, wanted, len(head))
    assert subject_span(tokenizer, text, wanted, len(head), add_special_tokens=False) == expected


@pytest.mark.parametrize(
    ("text", "subject", "tokens"),
    [
        ("Vinson Massif's height", "Vinson Massif", ["Vinson", "Massif"]),
        ("In St. John's it rains", "St. John's", ["St", ".", "John", "'s"]),
        ("Oslo is", "Oslo", ["Oslo"]),
        ("is Oslo", "Oslo", ["Oslo"]),
        ("Oslofjord, not Oslo", "Oslo", ["Oslo"]),
        ("Oslofjord", "Oslo", ["Oslofjord"]),
        ("the U.S.", "U.S.", ["U.S", "."]),
        ("the U.S.", "U.S", ["U.S"]),
        ("entity-12 likes entity-1", "entity-1", ["entity-1"]),
        ("entity_1 likes entity", "entity", ["entity"]),
        ("Lodz\u0301 likes Lodz", "Lodz", ["Lodz"]),
        ("👩\u200d🚀 likes 👩", "👩", ["👩"]),
        ("where <extra_id_0> meets Oslo", " Oslo ", ["Oslo"]),
    ],
)
def test_spans_by_hand(text: str, subject: str, tokens: list[str]) -> None:
    tokenizer = tokenizer_of("words")
    first, end = subject_span(tokenizer, text, subject)
    ids, offsets = tokenizer(text).input_ids, tokenizer(text, return_offsets_mapping=True).offset_mapping
    assert [text[left:right] for left, right in offsets[first:end]] == tokens
    assert end <= len(ids) - 1  # the end of the sequence is never the subject's
    assert first or text.startswith(tokens[0])


def test_a_subject_that_occurs_twice_is_found_by_its_place() -> None:
    tokenizer = tokenizer_of("words")
    assert subject_span(tokenizer, "Oslo is not Oslo", "Oslo", 0) == (0, 1)
    assert subject_span(tokenizer, "Oslo is not Oslo", "Oslo", 12) == (3, 4)
    assert subject_span(tokenizer, "Oslo is not Oslo", " Oslo", 11) == (3, 4)
    assert subject_span(tokenizer, "Oslo a b", " a", 4) == (1, 2)


def drops(character: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Replace(character, "")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


@pytest.mark.parametrize(
    ("text", "subject", "start", "message"),
    [
        ("Oslo is", "", None, "no subject: expected the words of the prompt that its fact is about, found none"),
        ("Oslo is", " ", 4, "no subject"),
        ("Oslo is", "Bergen", None, "subject 'Bergen': expected it in the prompt, found 'Oslo is'. Spell it as"),
        ("Oslo is", "oslo", None, "They differ in case, or in how their characters are composed"),
        ("Łódz\u0301 is", "Łódź", None, "They differ in case, or in how"),
        ("Oslo is Oslo", "Oslo", None, "found it 2 times in 'Oslo is Oslo'.* as subject_start: 0 or 8"),
        ("Oslo's Oslo-like", "Oslo", None, "found it 2 times"),
        ("Oslofjord, Oslofolk", "Oslo", None, "found it 2 times"),
        ("aXaXa", "aXa", None, "found it 2 times in .* subject_start: 0 or 2"),
        ("Oslo is", "Oslo", 2, "subject_start: expected the place of 'Oslo' in .*, found 2, where 'lo i' stands"),
        ("Oslo is", "Oslo", 99, "subject_start: expected the place of 'Oslo' in characters, found 99, where ''"),
    ],
)
def test_subjects_that_are_not_there_once(text: str, subject: str, start: int | None, message: str) -> None:
    for kind in ("words", "gpt-2", "t5"):
        with pytest.raises(ValueError, match=message):
            subject_span(tokenizer_of(kind), text, subject, start)


def test_tokenizers_that_cannot_tell() -> None:
    with pytest.raises(ValueError, match="subject '@@': expected tokens that hold it, found none in 'a @@ b'"):
        subject_span(drops("@"), "a @@ b", "@@")
    assert subject_span(drops("@"), "a @b@ b", "@b@") == (1, 2)

    class Reordering:
        is_fast = True

        def __call__(self, text: str, **settings: bool) -> dict[str, list[Any]]:
            return {"input_ids": [1, 2, 3], "offset_mapping": [(0, 2), (4, 5), (2, 4)]}

        def decode(self, ids: list[int], **settings: bool) -> str:
            return "x"

    with pytest.raises(ValueError, match=r"expected tokens in a row, found them at \[0, 2\] in 'Oslo is'"):
        subject_span(Reordering(), "Oslo is", "Oslo")  # type: ignore[arg-type]

    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match=r"expected a fast tokenizer.*found Slow"):
        subject_span(Slow(), "a", "a")  # type: ignore[arg-type]
