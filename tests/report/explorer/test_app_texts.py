"""Texts and numbers in the explorer's page are those of the terminal views."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page

import ftrace.report.explorer
from ftrace.shown_text import plain
from ftrace.views.marked_text import excerpt
from ftrace.views.ranking import Place
from ftrace.views.terminal import loss_text, percent, rank_text, score_text
from helpers.browsers import launched

APP = Path(ftrace.report.explorer.__path__[0]) / "app"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page that has the app's functions for texts and numbers."""
    scripts = "".join((APP / name).read_text() for name in ("text.js", "numbers.js"))
    with launched("chromium") as browser:
        page = browser.new_page()
        page.evaluate(f"(0, eval)({('const preact = { Component: class {} };' + scripts)!r})")
        yield page


def test_what_can_not_be_seen_becomes_the_same_escape(page: Page) -> None:
    codes = [*range(0x10000), *range(0x1F600, 0x1F610), *range(0xE0000, 0xE0200)]
    shown = page.evaluate("(codes) => codes.map((code) => escape(plain(String.fromCodePoint(code))))", codes)
    unescaped = page.evaluate("(texts) => texts.map((text) => escape(text))", [plain(chr(code)) for code in codes])
    assert shown == unescaped
    assert page.evaluate("plain('a\\r\\nb\\td')") == plain("a\r\nb\td")


def test_numbers_read_the_same(page: Page) -> None:
    draws = np.random.default_rng(0)
    scores = [0.0, *(float(s) for s in draws.normal(size=40) * 10.0 ** draws.integers(-9, 9, 40))]
    largest = [
        float(np.float64(abs(score)) * factor) for score, factor in zip(scores, draws.uniform(1, 9, 41), strict=True)
    ]
    shares = [0.0, 1.0, -1.0, 0.9996, -0.9996, 0.0002, -0.0002, 0.0994, -0.042, *map(float, draws.uniform(-1, 1, 40))]
    losses = [0.0, 0.001, 0.02, 0.5, 1.0, 23.64, 9.996, 100.4, *map(float, draws.uniform(0, 30, 40))]
    scores, largest = [*scores, *scores[1:20]], [*largest, *(abs(score) * 10.0**4 for score in scores[1:20])]
    asked = [[score, most] for score, most in zip(scores, largest, strict=True)]
    assert_same(page.evaluate("(all) => all.map(([score, most]) => scoreText(score, most))", asked),
                [score_text(score, most) for score, most in zip(scores, largest, strict=True)])  # fmt: skip
    assert_same(page.evaluate("(all) => all.map(percent)", shares), [percent(share) for share in shares])
    assert_same(page.evaluate("(all) => all.map((loss) => lossText(loss, 1))", losses),
                [loss_text((loss, 1.0)) for loss in losses])  # fmt: skip
    assert page.evaluate("[rankText(3, 0), rankText(3, 2)]") == [
        rank_text(Place(3, ties, 0.0, None)) for ties in (0, 2)
    ]
    assert page.evaluate("[scoreText(null, 1), percent(null), stepText(-1), stepText(null)]") == [
        *2 * ["\u2013"],
        "never",
        "",
    ]


def assert_same(shown: list[str], terminal: list[str]) -> None:
    """Hold that numbers are those of the terminal, but for the sign and zeros ahead in an exponent."""
    assert shown == [
        text.replace("-", "\u2212").replace("e\u22120", "e\u2212").replace("e+0", "e+") for text in terminal
    ]


@pytest.mark.parametrize("limit", [12, 40, 400])
def test_folded_text_is_the_part_with_the_most_marks(page: Page, limit: int) -> None:
    text = "a word " * 30 + "about Oslo, and Oslo in Norway, " + "and words " * 9
    spans = [(begin, begin + 4) for begin in range(len(text)) if text.startswith("Oslo", begin)]
    part = page.evaluate("([text, spans, limit]) => excerpt(text, spans, limit)", [text, spans, limit])
    marked = [part["text"][begin:end] for begin, end in part["spans"]]
    assert marked == ["Oslo"] * len(excerpt(text, spans, limit)[1])
    assert part["before"] + len(part["text"]) + part["after"] == len(text)
    assert text[part["before"] :].startswith(part["text"])


def test_folded_text_parts_no_character(page: Page) -> None:
    """JavaScript counts such a character twice, and half of one would be shown as an escape."""
    for ahead in ("", "a"):
        text = ahead + "\U0001f600" * 300
        for limit in (40, 41):
            part = page.evaluate("([text, limit]) => excerpt(text, [[90, 91]], limit)", [text, limit])
            assert set(part["text"]) <= {"a", "\U0001f600"}
            assert (
                part["before"] + len(part["text"].encode("utf-16-le")) // 2 + part["after"]
                == len(text.encode("utf-16-le")) // 2
            )
