"""Texts come out as text, whatever is in them; shared words are found in any script; near-duplicates are one."""

from __future__ import annotations

import sys
import unicodedata
from random import Random

import pytest

from ftrace.shown_text import plain
from ftrace.views.duplicates import fold_duplicates
from ftrace.views.marked_text import excerpt, marked_text
from ftrace.views.words import SampledWords, shared_spans, word_keys, words_in


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\nb\r\nc\u2028d", "a ↵ b ↵ c ↵ d"),
        ("a\tb", "a b"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\u2067b\u200fc\u061cd", r"a\u2067b\u200fc\u061cd"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("\x00\x07\x08\x7f\x9b", r"\x00\x07\x08\x7f\x9b"),
        ("half \ud800 pair", r"half \ud800 pair"),
        ("tag \U000e0041", r"tag \U000e0041"),
        ("हि\u200cन्दी 👩\u200d👩 日本 e\u0301", "हि\u200cन्दी 👩\u200d👩 日本 e\u0301"),
        ("[red]markup[/]", "[red]markup[/]"),
    ],
)
def test_nothing_acts_on_a_terminal(text: str, printed: str) -> None:
    assert plain(text) == printed
    assert marked_text(text).plain == printed


def test_no_control_character_of_unicode_is_left() -> None:
    kept = {"\u034f", "\u200c", "\u200d"}
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in (
            "LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI",
        ):  # fmt: skip
            assert character not in plain(character) or character in kept, hex(code)


def test_marks_are_of_the_text_itself() -> None:
    text = "\x1b the Mayor\nof Oslo"
    begin = text.index("Oslo")
    marked = marked_text(text, [(begin, begin + 4)])
    (span,) = marked.spans
    assert marked.plain[span.start : span.end] == "Oslo"


def test_an_excerpt_has_what_is_marked() -> None:
    text = f"{'so it goes ' * 50}and Oslo is the capital {'of this and that ' * 50}"
    begin = text.index("Oslo")
    part, spans = excerpt(text, [(begin, begin + 4)], 60)
    assert part.startswith("…")
    assert part.endswith("…")
    assert len(part) <= 62
    assert [part[start:end] for start, end in spans] == ["Oslo"]
    assert excerpt(text, [(begin, begin + 4)], None) == (text, [(begin, begin + 4)])
    assert excerpt("short", [(0, 5)], 60) == ("short", [(0, 5)])
    part, spans = excerpt("x" * 500, [(0, 500)], 60)
    assert (part, spans) == (f"{'x' * 60}…", [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's the <extra_id_0> of X_1", ["it", "s", "the", "of", "x", "1"]),
        ("ÇA, Straße", ["ça", "strasse"]),
        ("Cafe\u0301 हि\u200cन्दी हिन्दी", ["café", "हिन्दी", "हिन्दी"]),
        ("東京都 and ABC東", ["東京", "京都", "and", "abc", "東"]),
        ("...", []),
    ],
)
def test_words_of_any_script(text: str, words: list[str]) -> None:
    assert [word.key for word in words_in(text)] == words
    for word in words_in(text):
        assert text[word.begin : word.end].strip(" ._,") == text[word.begin : word.end]


def test_usual_letters_are_read_as_those_of_any_script() -> None:
    random = Random(0)
    usual = [chr(code) for code in (*range(0x20, 0x17F), *range(0x370, 0x530), *range(0x2010, 0x2027))] + [" "] * 60
    for size in (20, 200):
        for _ in range(200):
            text = "".join(random.choices(usual, k=size))
            assert words_in(text) == words_in(f"{text} 東")[:-1], repr(text)  # one such letter makes it unusual
            assert word_keys(text) == [word.key for word in words_in(text)]
            ascii_text = text.encode("ascii", "ignore").decode()
            assert word_keys(ascii_text) == [word.key for word in words_in(f"{ascii_text} 東")][:-1]


def test_shared_words_are_marked_in_the_text_as_it_is() -> None:
    text = "OSLO, cafe\u0301 <extra_id_0> 東京都"
    spans = shared_spans(text, {"oslo", "café", "東京", "京都", "extra", "0"})
    assert [text[begin:end] for begin, end in spans] == ["OSLO", "cafe\u0301", "東京都"]


def test_words_of_most_examples_say_nothing() -> None:
    texts = [f"the number {number}" for number in range(30)]
    assert SampledWords(texts).common({"the", "7", "oslo"}) == {"the"}
    assert SampledWords(texts[:5]).common({"the"}) == set()


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        ("Oslo lies in Norway.", "oslo  lies in norway", True),
        ("Anna is the mother of Bo", "Bo is the mother of Anna", False),
        ("the painter of 4-entity was X", "the painter of entity-4 was X", False),
        ("the painter of A was B", "the painter of A was C", False),
        (" ".join(map(str, range(60))), " ".join(map(str, [*range(30), 99, *range(31, 60)])), True),
        ("...", "!!!", False),
        ("...", "...", True),
        ("", "word", False),
    ],
)
def test_near_duplicates(first: str, second: str, alike: bool) -> None:
    assert fold_duplicates([first, second]) == ([[0, 1]] if alike else [[0], [1]])


def test_texts_that_are_not_known_are_not_alike() -> None:
    assert fold_duplicates([None, "a b", None, "A b."]) == [[0], [1, 3], [2]]


def test_folding_is_that_of_all_comparisons() -> None:
    def alike(first: str, second: str) -> bool:
        return len(fold_duplicates([first, second])) == 1

    random = Random(0)
    words = [[random.choice("abcdefgh") for _ in range(random.randint(0, 45))] for _ in range(8)]
    texts = ["...", "...", "!"]
    for _ in range(100):
        text = list(random.choice(words))
        for _ in range(random.randint(0, 3)):
            if text:
                text[random.randrange(len(text))] = random.choice("abcij")
        texts.append(" ".join(text))
    groups: list[list[int]] = []
    for place, text_of_place in enumerate(texts):
        group = next((group for group in groups if alike(texts[group[0]], text_of_place)), None)
        if group is None:
            groups.append([place])
        else:
            group.append(place)
    assert fold_duplicates(texts) == groups
    assert len(groups) < len(texts)
