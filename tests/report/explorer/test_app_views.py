"""In a browser: queries are found and sorted, and near-duplicates and wrong answers can't be missed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from ftrace.report.explorer.page.writing import write_report
from helpers.browsers import launched
from helpers.report_parts import small_head

METHODS = [
    {
        "title": title,
        "kind": title,
        "unit": "",
        "doubts": [],
        "is_complete": True,
        "num_examples": 9,
        "has_opponents": True,
        "axes": {},
    }
    for title in ("learning", "dot")
]
QUERIES = {
    "ids": ["9007199254740993", "7", "8", "9"],
    "names": ["Norway", None, None, None],
    "prompts": ["The capital of Norway is", "The capital of Sweden is", "It (snows", None],
    "answers": ["Oslo", "Stockholm", "here", None],
    "said": ["Oslo", "Oslo", None, None],
    "said_right": [True, False, None, None],
    "first_losses": [9.0, 9.0, 9.0, None],
    "last_losses": [0.1, 3.0, 0.5, None],
    "learned_steps": [40, -1, 20, None],
    "states": ["forgotten", "never", "learned", None],
    "precisions": [[0.5, 0.1, None, 0.9], [0.2, 1.0, None, 0.0]],
    "disagreements": [0.2, 0.8, 0.4, None],
    "facets": {"relation": ["capital", "capital", "weather", "weather"]},
}


def example(place: int, text: str, score: float, **fields: Any) -> dict[str, Any]:
    at = {"rank": place + 1, "rank_from_below": 6 - place, "ties": 0, "score": score, "share": score / 4}
    known = {"name": None, "cut": 0, "answer": None, "states_fact": None, "kind": None, "shared": []}
    return {"id": str(place), "text": text, "places": [at, None], "alike": place, **known, **fields}


EXAMPLES = [
    example(0, "Stockholm is the capital of Sweden.", 4, states_fact=True),
    example(1, "The capital of Sweden is Stockholm.", 3, states_fact=True, alike=0),
    example(2, "It snows.", 1, states_fact=False, kind="other"),
    example(3, "<b>Oslo</b> is the capital of Sweden.", -2, states_fact=False, kind="same subject"),
]
LISTS = {
    "candidates": 9,
    "positive": 3,
    "negative": 1,
    "proponents": [0, 1, 2],
    "opponents": [3],
    "more_proponents_like_last": 2,
    "more_opponents_like_last": 0,
}
QUERY = {
    "id": "7",
    "name": None,
    "prompt": "The capital of Sweden is",
    "cut": 0,
    "answer": "Stockholm",
    "accepted": [],
    "said": {"text": "oslo", "probability": 0.4, "right": False, "snapshot": ""},
    "properties": [],
    "loss": None,
    "answered": None,
    "warnings": [],
    "examples": EXAMPLES,
    "lists": [LISTS, None],
    "parts": [],
    "tokens": None,
    "causal": None,
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    chunks = [("query-1", QUERY), ("head", small_head(methods=METHODS, queries=QUERIES))]
    return write_report(tmp_path_factory.mktemp("report") / "a report", chunks, title="A report").as_uri()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with launched("chromium") as browser:
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.set_default_timeout(10_000)
        yield page


def opened(page: Page, report: str, address: str) -> Page:
    page.goto("about:blank")
    page.goto(f"{report}#{address}")
    page.locator("main h1").wait_for()
    return page


def order(page: Page) -> str:
    """Return the queries that are listed, by the first letters of their countries."""
    names = {"Norway": "N", "Sweden": "S", "snows": "-", "#9": "9"}
    texts = page.locator(".query-table tbody td.query").all_inner_texts()
    return "".join(letter for text in texts for name, letter in names.items() if name in text)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", "NS-9"),
        ("sort=learned&down=no", "-NS9"),  # never comes after every step, and what nobody knows at the end
        ("sort=learned&down=yes", "SN-9"),
        ("sort=loss&down=yes", "S-N9"),
        ("sort=precision&down=no&method=learning", "SN9-"),
        ("sort=precision&down=no&method=dot", "9NS-"),
        ("sort=disagreement&down=yes", "S-N9"),
        ("sort=said&down=no", "SN-9"),
        ("find=CAPITAL+oslo", "NS"),  # of a prompt, an answer, or what the model said
        ("find=norway+stockholm", ""),
        ("find=%28", "-"),  # no regular expression
        ("find=9007199254740993", "N"),
        ("answered=wrong", "S"),
        ("sort=%28.%2A%29&find=&answered=%3F", "NS-9"),  # unknown values are left out
    ],
)
def test_queries_are_found_and_sorted(page: Page, report: str, address: str, expected: str) -> None:
    assert order(opened(page, report, address)) == expected


def test_what_an_address_names_and_the_report_lacks_is_said(page: Page, report: str) -> None:
    opened(page, report, "view=query&query=7&method=bm25&constructor=x&facet.relation=capital")
    (said,) = page.get_by_role("alert").all_inner_texts()
    assert "method=bm25" in said
    assert "constructor=x" in said
    assert "facet" not in said


def test_typing_narrows_the_list_and_the_address(page: Page, report: str) -> None:
    opened(page, report, "")
    page.keyboard.press("/")
    page.keyboard.type("sweden j")
    page.locator(".empty").wait_for()
    page.keyboard.press("Backspace")
    page.keyboard.press("Backspace")
    page.wait_for_url("**#find=sweden")
    page.locator(".query-table td.query").first.wait_for()
    assert order(page) == "S"


def test_near_duplicates_are_folded_until_somebody_asks(page: Page, report: str) -> None:
    opened(page, report, "view=query&query=7")
    duplicate = page.locator(".proponents .entry", has_text="The capital of Sweden is")
    assert not duplicate.is_visible()
    page.get_by_role("button", name="show 1 near-duplicate").click()
    assert duplicate.is_visible()
    opened(page, report, "view=query&query=7&example=1")  # a link to it unfolds it
    assert duplicate.is_visible()
    assert "chosen" in (duplicate.get_attribute("class") or "")


def test_wrong_answer_is_found_among_the_examples(page: Page, report: str) -> None:
    opened(page, report, "view=query&query=7")
    marked = page.locator(".entry", has_text="has the wrong answer")
    assert marked.locator(".text").all_inner_texts() == ["<b>Oslo</b> is the capital of Sweden."]
    page.get_by_label("States").select_option("said")
    assert page.locator(".entry .text").all_inner_texts() == ["<b>Oslo</b> is the capital of Sweden."]
    page.wait_for_url("**states=said")


def test_lists_say_what_they_leave_out(page: Page, report: str) -> None:
    opened(page, report, "view=query&query=7")
    assert "2 more have the score of the last one." in page.locator(".proponents").inner_text()
    opened(page, report, "view=query&query=7&method=dot")
    assert page.locator(".sides .empty").all_inner_texts() == ["This method has no scores for the query."] * 2


def test_missing_or_damaged_part_is_said(page: Page, report: str) -> None:
    opened(page, report, "")
    page.goto(f"{report}#view=query&query=8")
    page.get_by_role("alert").wait_for()
    assert "chunks/query-2.js can\u2019t be read" in page.get_by_role("alert").inner_text()
    page.keyboard.press("ArrowLeft")
    page.locator(".query-head").wait_for()
    assert "query=7" in page.url


@pytest.mark.parametrize("chunk", [{}, {**QUERY, "accepted": None}, [], {**QUERY, "examples": [None]}])
def test_part_that_lacks_what_the_page_expects_is_said(page: Page, tmp_path: Path, chunk: Any) -> None:
    chunks = [("query-1", chunk), ("head", small_head(methods=METHODS, queries=QUERIES))]
    opened_report = write_report(tmp_path / "report.html", chunks, title="").as_uri()
    page.goto("about:blank")
    page.goto(f"{opened_report}#view=query&query=7")
    page.get_by_role("alert").wait_for()
    assert "\u201cquery-1\u201d of this report is damaged" in page.get_by_role("alert").inner_text()
    page.get_by_role("link", name="Queries", exact=True).click()
    page.locator(".query-table").wait_for()


@pytest.mark.parametrize("lacking", ["limits", "queries", "methods"])
def test_head_that_lacks_what_the_page_expects_is_said(page: Page, tmp_path: Path, lacking: str) -> None:
    head = {name: value for name, value in small_head(queries=QUERIES).items() if name != lacking}
    page.goto(write_report(tmp_path / "report.html", [("head", head)], title="").as_uri())
    page.get_by_text("\u201chead\u201d of this report is damaged").wait_for()


def test_a_file_that_was_cut_off_says_so(page: Page, report: str, tmp_path: Path) -> None:
    whole = write_report(tmp_path / "report.html", [("head", small_head(queries=QUERIES))], title="").read_text()
    (tmp_path / "part.html").write_text(whole[: len(whole) * 2 // 3])
    page.goto((tmp_path / "part.html").as_uri())
    page.get_by_text("the file was cut off").wait_for()
    opened(page, report, "")
    assert page.get_by_text("the file was cut off").count() == 0


@pytest.fixture(scope="module")
def answers_report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of examples whose answers aren't in their texts, as in tables of sentences and labels."""
    examples = [
        example(0, "superb film", 4, answer="Stockholm"),
        example(1, "I know it", 3, answer="no"),
        example(2, "It is <extra_id_0>.", 2, answer="no"),
        example(3, "crisp film", -2, answer="Oslo"),
    ]
    pages = [{"id": "4124", "name": None, "text": "a text", "cut": 0, "answer": None, "methods": [None, None]}]
    query = {**QUERY, "said": {**QUERY["said"], "text": None, "right": None}, "examples": examples}
    proponents = [*range(3), *range(4, 28)]
    query["examples"] = [*examples, *(example(place, f"text {place}", 1) for place in range(4, 28))]
    query["lists"] = [{**LISTS, "proponents": proponents}, None]
    ledger = {
        "sentence": "They explain some.",
        "doubts": [],
        "steps": [0, 5, 8],
        "actual": [1.0, 0.5],
        "accounts": [{"name": "examples", "values": [0.9, 0.75]}, {"name": "decay", "values": [0.15, -0.15]}],
    }
    lost = {"steps": [0, 30, 60], "values": [9.0, 1.0, 4.0]}
    forgotten = {"state": "forgotten", "step": 30, "text": "first answered right at step 30, forgotten at step 60"}
    run = {"folder": None, "evaluation": None, "ledger": ledger, "causal": None, "manifests": [], "claims": []}
    queries = {**QUERIES, "best_precisions": [0.5, 1.0, None, None]}
    methods = [METHODS[0], {**METHODS[1], "kind": ""}]
    head = small_head(methods=methods, queries=queries, is_redacted=True, example_chunks=["9", "64"], run=run)
    chunks = [
        ("query-1", {**query, "loss": lost, "answered": forgotten}),
        ("example-1", {"examples": pages}),
        ("head", head),
    ]
    return write_report(tmp_path_factory.mktemp("answers") / "a report", chunks, title="A report").as_uri()


def test_answer_that_the_text_lacks_stands_beside_it(page: Page, answers_report: str) -> None:
    opened(page, answers_report, "view=query&query=7")
    texts = [" ".join(text.split()) for text in page.locator(".entry .text").all_inner_texts()]
    assert texts[:3] == [
        "superb film → answer: Stockholm",
        "I know it → answer: no \u2013 not the query\u2019s answer",
        "It is no.",
    ]
    assert texts[-1] == "crisp film → answer: Oslo \u2013 not the query\u2019s answer"


def test_text_leads_to_the_page_of_its_example(page: Page, answers_report: str) -> None:
    opened(page, answers_report, "view=query&query=7")
    page.locator(".entry .text a", has_text="crisp film").click()
    page.wait_for_url("**view=example*example=3")
    assert page.title() == "Example #3 · A report"


def test_what_a_redacted_report_leaves_out_is_not_called_unsaid(page: Page, answers_report: str) -> None:
    opened(page, answers_report, "view=query&query=7")
    answers = page.locator(".query-head").inner_text()
    assert "(left out)" in answers
    assert "Right answer" not in answers  # nobody says that it is
    assert "first answered right at step 30, forgotten at step 60" in answers


def test_words_over_a_list_are_those_of_its_kind(page: Page, answers_report: str) -> None:
    opened(page, answers_report, "view=query&query=7")
    assert "while the query is being learned" in page.locator(".reading").inner_text()
    opened(page, answers_report, "view=query&query=7&method=dot")
    assert "don\u2019t say which kind" in page.locator(".reading").inner_text()
    assert "the loss" not in page.locator(".sides").inner_text()


def test_paper_gets_the_strongest_examples(page: Page, answers_report: str) -> None:
    opened(page, answers_report, "view=query&query=7")
    page.locator(".proponents .entry").nth(26).wait_for()
    page.emulate_media(media="print")
    shown = [entry.is_visible() for entry in page.locator(".proponents .entry").all()]
    assert shown == 20 * [True] + 7 * [False]
    assert page.locator(".on-paper:visible").all_inner_texts() == ["The first 20 of 27 that the page lists."]
    page.emulate_media(media="screen")
    assert page.locator(".on-paper:visible").count() == 0


@pytest.mark.parametrize(("find", "found"), [("%234124", 1), ("4124", 1), ("4125", 0), ("8", 0), ("%231", 0)])
def test_example_is_found_by_its_number(page: Page, answers_report: str, find: str, found: int) -> None:
    opened(page, answers_report, f"find={find}")
    if found:
        page.locator(".found a").wait_for()
        assert "example=4124" in (page.locator(".found a").get_attribute("href") or "")
    page.wait_for_load_state("networkidle")
    assert page.locator(".found").count() == found


def test_highest_possible_precision_stands_beside_what_was_reached(page: Page, answers_report: str) -> None:
    opened(page, answers_report, "")
    assert page.locator("td.precision").all_inner_texts() == ["50% of 50%", "10%", "\u2013", "90%"]


def test_ledger_adds_up(page: Page, answers_report: str) -> None:
    opened(page, answers_report, "view=run")
    rows = [row.all_inner_texts() for row in (page.locator(".ledger-parts tbody tr").all())]
    assert rows[-2][0].split()[-2:] == ["\u22120.15", "\u221210%"]
    numbers = [float(row[0].split()[-1].removesuffix("%").replace("\u2212", "-")) for row in rows]
    assert sum(numbers[:-1]) == numbers[-1] == 100


def test_each_press_of_the_theme_button_is_seen(page: Page, answers_report: str) -> None:
    for system, other in (("light", "dark"), ("dark", "light")):
        page.emulate_media(color_scheme=system)
        opened(page, answers_report, "")
        for expected in (other, "auto", other, "auto"):
            page.get_by_role("button", name="Colours").click()
            assert page.evaluate("document.documentElement.dataset.theme") == expected
    page.emulate_media(color_scheme="light")
