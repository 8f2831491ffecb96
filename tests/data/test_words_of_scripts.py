"""Words in any script."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftrace.data.words import words_of

TEXTS = {
    "Devanagari": ("हिन्दी में लिखा, क़लम", ["हिन्दी", "में", "लिखा", "क़लम"]),
    "Bengali": ("বাংলা ভাষা", ["বাংলা", "ভাষা"]),
    "Tamil": ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
    "Thai": ("ไทยดี มาก", ["ไทยดี", "มาก"]),
    "Hebrew with points": ("שָׁלוֹם עוֹלָם", ["שָׁלוֹם", "עוֹלָם"]),
    "Arabic with vowels": ("مُحَمَّدٌ، كَتَبَ", ["مُحَمَّدٌ", "كَتَبَ"]),
    "Persian": ("می\u200cخواهم بروم", ["میخواهم", "بروم"]),  # noqa: RUF001
    "Sinhala with a joiner": ("ශ්\u200dරී ලංකාව", ["ශ්රී", "ලංකාව"]),
    "Latin": ("Ærø, ÇAĞ—naïve", ["ærø", "çağ", "naïve"]),
    "Vietnamese": ("Tiếng Việt", ["tiếng", "việt"]),
    "Turkish": ("İstanbul'da", ["i\u0307stanbul", "da"]),
    "Chinese": ("北京是中国的首都。", ["北京是中国的首都"]),
    "Japanese": ("東京の「がっこう」", ["東京の", "がっこう"]),
    "Korean": ("한국어 말", ["한국어", "말"]),
    "soft hyphen": ("Ver\u00adein ist", ["verein", "ist"]),
    "emoji": ("1\ufe0f\u20e3 x👩\u200d🚀y", ["1", "x", "y"]),
    "numbers": ("x² 3½ ٣٤", ["x²", "3½", "٣٤"]),
    "underscores": ("né_e __ _", ["né", "e"]),
}


@pytest.mark.parametrize(("text", "words"), TEXTS.values(), ids=list(TEXTS))
def test_marks_belong_to_their_words(text: str, words: list[str]) -> None:
    expected = [unicodedata.normalize("NFC", word) for word in words]
    assert words_of(text) == expected
    assert words_of(unicodedata.normalize("NFD", text)) == expected
    assert words_of(unicodedata.normalize("NFC", text)) == expected


def test_a_mark_without_a_letter_is_no_word() -> None:
    assert words_of("\u0301 \u093f a") == ["a"]
    assert words_of("") == []


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_words_are_runs_of_letters_and_digits(text: str) -> None:
    assert words_of(text) == re.findall(r"[^\W_]+", text.lower())
    assert words_of(text + " é")[:-1] == re.findall(r"[^\W_]+", text.lower())  # beside other scripts, too


@given(st.text())
def test_words_don_t_depend_on_how_characters_are_composed(text: str) -> None:
    assert words_of(unicodedata.normalize("NFD", text)) == words_of(unicodedata.normalize("NFC", text))
