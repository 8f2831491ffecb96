"""In Chromium and Firefox, opened as by double-click: it shows the stores' numbers and asks for nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from helpers import command_line
from helpers.browsers import NAMES, launched
from helpers.hostile_store import HOST, IDS, MARK, QUERY_IDS, hostile_store
from helpers.known_report import LARGE, QUERIES, KnownReport, known_report
from helpers.report_reader import VIEWS, ReportReader, number

AXE = Path(__file__).parents[2] / "vendor" / "axe.min.js"
STATES = {
    view: {} if view in ("queries", "run", "notes") else {"view": view, "query": "0", "example": str(LARGE)}
    for view in VIEWS
}
STATES |= {view: {"view": view} for view in ("run", "notes")}


HOSTILE_ADDRESSES = (
    "view=__proto__&query=0",
    "view=constructor&method=toString",
    f"view=query&query={'9' * 400}&example=(a%2B)%2B%24",
    "view=example&example=1e999&columns=1,1",
    "view=compare&query=0&columns=0,99&top=7&side=x",
    "%E0%A4%A&=&&&view",
    f"view=query&query=0&find=<img src=http://{HOST}/x onerror=window.{MARK}=1>&facet.__proto__=x",
    f"javascript:window.{MARK}=1",
    f"view=query&query=0&states=</script><script>window.{MARK}=1</script>&kind=__proto__",
)
HOSTILE_STATES: tuple[dict[str, str], ...] = (
    {},
    {"view": "run"},
    *({"view": "query", "query": str(query)} for query in QUERY_IDS[::3]),
    *({"view": "example", "query": str(QUERY_IDS[0]), "example": str(example)} for example in IDS[::4]),
)
FOREIGN_ELEMENTS = f"#app :is(img, script, iframe, style, link, meta, base, #{MARK}), head > base, body > iframe"
KEEP_WHAT_IS_SAVED = """() => {
  URL.createObjectURL = (blob) => { window.saved = blob; return "about:blank"; };
  HTMLAnchorElement.prototype.click = () => {};
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> KnownReport:
    return known_report(tmp_path_factory.mktemp("known"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile # 100% ü")
    store = hostile_store(folder / "store")
    assert command_line.code("report", store.path, f"--out={folder / 'report.html'}") == 0
    return folder / "report.html"


@pytest.fixture(scope="module", params=NAMES)
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    with launched(request.param) as browser:
        yield browser


@pytest.mark.parametrize("browser", ["chromium"], indirect=True)  # the rules ask for nothing that others do differently
def test_each_view_can_be_read_by_all(browser: Browser, report: KnownReport) -> None:
    """By those, too, who use a screen reader or need contrast, on a light and on a dark ground."""
    with ReportReader(browser, report.file) as reader:
        for view, state in STATES.items():
            page = reader.open(state)
            page.evaluate(AXE.read_text())
            for theme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
                page.evaluate("(theme) => { document.documentElement.dataset.theme = theme }", theme)
                found = page.evaluate("(rules) => axe.run(rules)", rules)
                assert found["passes"]
                assert not [(view, theme, rule["id"], rule["nodes"][0]["html"]) for rule in found["violations"]]


def test_each_view_fits_a_narrow_window(browser: Browser, report: KnownReport) -> None:
    with ReportReader(browser, report.file, width=400) as reader:
        for view, state in STATES.items():
            assert reader.open(state).evaluate("document.documentElement.scrollWidth") <= 400, view


def test_both_forms_show_the_same(browser: Browser, report: KnownReport) -> None:
    with ReportReader(browser, report.file) as one, ReportReader(browser, report.index) as other:
        for state in STATES.values():
            # All text of the page: what is seen of it depends on which entries the browser has laid out so far.
            shown = one.open(state).locator("#app").text_content()
            assert other.open(state).locator("#app").text_content() == shown


@pytest.mark.parametrize("query", QUERIES)
def test_lists_are_those_of_the_stores(browser: Browser, report: KnownReport, query: int) -> None:
    with ReportReader(browser, report.file) as reader:
        for title, store in report.stores.items():
            if query not in store.query_ids:
                continue
            reader.open({"view": "query", "query": str(query), "method": title})
            scores = store.scores(query, report.kinds[title])
            for side, largest in (("proponents", True), ("opponents", False)):
                ids, expected = store.top(query, k=100, kind=report.kinds[title], largest=largest)
                if not largest:
                    ids, expected = ids[expected < 0], expected[expected < 0]
                shown = shown_list(reader, side)
                assert [entry["id"] for entry in shown] == [known_as(int(example)) for example in ids]
                for entry, score in zip(shown, expected.tolist(), strict=True):
                    value, rounding = number(entry["score"])
                    assert value == pytest.approx(score, abs=rounding)
                    better = np.sum(scores > score) if largest else np.sum(scores < score)
                    ties = np.sum(scores == score) > 1
                    assert entry["rank"] == f"{'=' if ties else ''}{better + 1}"


def known_as(example: int) -> str:
    return "wiki/Oslo" if example == 8 else f"#{example}"


def shown_list(reader: ReportReader, side: str) -> list[dict[str, str]]:
    """Return rank, id and score of each example of a list, near-duplicates unfolded and in the order of their ranks."""
    for button in reader.page.locator(f"section.{side} .alike > button[aria-expanded=false]").all():
        button.click()
    entries = [
        {part: entry.locator(f".{part}").first.inner_text() for part in ("rank", "id", "score")}
        for entry in reader.page.locator(f"section.{side} .entry").all()
    ]
    return sorted(entries, key=lambda entry: int(entry["rank"].removeprefix("=")))


def test_comparison_joins_by_id(browser: Browser, report: KnownReport) -> None:
    """The second store has other examples in another order, and the third candidates of its own."""
    with ReportReader(browser, report.file) as reader:
        reader.open({"view": "compare", "query": "0", "columns": "1,2"})
        both, only_first, only_second = (
            {text.split()[-1] for text in table.locator("th[scope=row] .id").all_inner_texts()}
            for table in reader.page.locator(".compared tbody").all()
        )
        assert both == {"#3", "#5", "#11", f"#{LARGE}"}
        assert only_first == {"wiki/Oslo", "#12", "#14"}
        assert only_second == {"#20"}
        rows = {
            row.locator(".id").inner_text(): row
            for row in reader.page.locator(".compared tr:not(.group)", has_text="#").all()
        }
        assert rows[f"#{LARGE}"].locator(".rank").all_inner_texts() == ["5", "5"]
        assert [number(text)[0] for text in rows[f"#{LARGE}"].locator(".score").all_inner_texts()] == [0.5, 2.0]
        assert rows["#3"].locator(".rank").all_inner_texts() == ["1", "=2"]
        assert rows["#3"].locator(".change").inner_text().split() == ["↓", "down", "1"]
        assert reader.texts(".overlaps .big") == ["57%"]
        reader.page.locator("fieldset.checks input").nth(2).click()
        expect(reader.page.locator(".overlaps li")).to_have_count(3)
        reader.open({"view": "compare", "query": "0", "columns": "1,3", "side": "opponents"})
        assert reader.texts(".compared tbody th[scope=row] .id") == ["#11", "#12", "#3"]


def test_example_tokens_map_and_run_show_their_numbers(browser: Browser, report: KnownReport) -> None:
    with ReportReader(browser, report.file) as reader:
        reader.open({"view": "example", "query": "0", "example": "3"})
        assert reader.texts(".part-bars .number") == ["+1.00", "+3.00"]
        assert reader.texts(".example-page .query-scores .score") == ["+4.00", "+0.50", "\u22121.00"]
        reader.open({"view": "tokens", "query": "0"})
        assert reader.texts(".token small") == ["+0.500", "\u22120.250"]
        reader.page.locator("summary").first.click()
        assert reader.texts(".token-table tbody .number") == ["+0.010", "+0.500", "\u22120.250", "+0.040", "\u2013"]
        reader.open({"view": "causal", "query": "0"})
        assert [cell.split()[0] for cell in reader.texts(".effects td.peak")] == ["41"]
        assert len(reader.texts(".effects td.read-off")) == 1
        assert len(reader.texts(".effects tbody td")) == 3 * 24
        reader.open({"view": "run"})
        assert reader.texts(".evaluation tr.total td") == ["100%", "25.0%"]
        assert "90% of what" in reader.page.locator(".ledger").inner_text()


def test_hostile_addresses_do_nothing(browser: Browser, report: KnownReport) -> None:
    with ReportReader(browser, report.file) as reader:
        for address in HOSTILE_ADDRESSES:
            page = reader.open(address, "main > *")
            assert page.evaluate(f"typeof window.{MARK}") == "undefined", address
            assert page.locator("main img, main script, main iframe").count() == 0, address
            page.locator(".page-head .title a").click()
            page.locator("input[type=search]").wait_for()


def test_hostile_corpus_adds_no_element_and_asks_for_nothing(browser: Browser, hostile: Path) -> None:
    with ReportReader(browser, hostile) as reader:
        for state in HOSTILE_STATES:
            page = reader.open(state)
            assert page.evaluate(f"typeof window.{MARK}") == "undefined"
            assert page.locator(FOREIGN_ELEMENTS).count() == 0
            shown = page.locator("body").inner_text()
            assert not re.search(r"[\x00-\x08\x1b\u202a-\u202e\u2066-\u2069]", shown)


def test_address_brings_back_what_was_seen(browser: Browser, report: KnownReport) -> None:
    with ReportReader(browser, report.file) as reader:
        page = reader.open({"view": "compare", "query": "17"})
        for label, choice in (("Side", "opponents"), ("Strongest", "20")):
            page.locator("label.choice", has_text=label).locator("select").select_option(choice)
        page.wait_for_url(re.compile("top=20"))
        shown, address = page.locator("main").inner_text(), page.url.partition("#")[2]
        page = reader.open(address, VIEWS["compare"])
        assert page.locator("main").inner_text() == shown
        page = reader.open({"view": "query", "query": "0", "method": "bm25", "states": "yes"})
        assert reader.texts("section.proponents .entry .id")[0] == "#3"
        page.locator("section.proponents .entry .id").first.click()
        page.locator(VIEWS["example"]).first.wait_for()
        page.go_back()
        page.locator(VIEWS["query"]).wait_for()
        assert page.locator(".methods [aria-current]").inner_text() == "bm25"


def test_keys_lead_through_the_report(browser: Browser, report: KnownReport) -> None:
    with ReportReader(browser, report.file) as reader:
        page = reader.open()
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.locator(VIEWS["query"]).wait_for()
        assert "query=17" in page.url
        page.keyboard.press("ArrowRight")
        page.wait_for_url(re.compile(f"query={2**61}"))
        expect(page.locator(".pager .soft").first).to_have_text("3 of 3")  # the address changes before the page
        page.keyboard.press("ArrowLeft")
        page.wait_for_url(re.compile("query=17"))
        page.locator(VIEWS["query"]).wait_for()
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.locator(VIEWS["example"]).first.wait_for()
        page.keyboard.press("u")
        page.locator(VIEWS["query"]).wait_for()
        page.keyboard.press("Escape")
        page.locator(VIEWS["queries"]).first.wait_for()
        page.keyboard.press("?")
        expect(page.locator("aside.help")).to_be_visible()
        page = reader.open({"view": "tokens", "query": "0"})
        page.locator(".token[tabindex='0']").first.focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator(".readout").first).to_contain_text("\u22120.250")


def test_notes_are_kept_and_go_to_another_reader(browser: Browser, report: KnownReport, tmp_path: Path) -> None:
    with ReportReader(browser, report.file) as reader:
        page = reader.open({"view": "query", "query": "0"})
        page.locator(".query-head .note-add").click()
        page.locator(".query-head textarea.note").fill("Look <b>here</b>")
        page = reader.open({"view": "notes"})
        expect(page.locator("textarea")).to_have_value("Look <b>here</b>")
        exported = tmp_path / "notes.json"
        if browser.browser_type.name == "chromium":
            with page.expect_download() as download:
                page.get_by_role("button", name="Export").click()
            download.value.save_as(exported)
        else:  # Playwright isn't told of what a system's Firefox saves
            page.evaluate(KEEP_WHAT_IS_SAVED)
            page.get_by_role("button", name="Export").click()
            exported.write_text(page.evaluate("window.saved.text()"))
    assert json.loads(exported.read_text())["notes"] == [{"query": "0", "example": None, "text": "Look <b>here</b>"}]
    with ReportReader(browser, report.index) as other:
        page = other.open({"view": "notes"})
        assert page.locator("textarea").count() == 0
        page.locator("input[type=file]").set_input_files(exported)
        expect(page.locator("textarea")).to_have_value("Look <b>here</b>")
        page = other.open({"view": "query", "query": "0"})
        expect(page.locator(".query-head textarea.note")).to_have_value("Look <b>here</b>")


def test_notes_of_two_windows_are_all_kept(browser: Browser, report: KnownReport) -> None:
    with ReportReader(browser, report.file) as reader:
        page = reader.open({"view": "query", "query": "0"})
        with reader.another() as other:
            other.goto(f"{report.file.as_uri()}#view=query&query=17")
            for window, text in ((other, "of the other window"), (page, "of this window")):
                window.locator(".query-head .note-add").click()
                window.locator(".query-head textarea.note").fill(text)
        page = reader.open({"view": "notes"})
        assert [field.input_value() for field in page.locator("textarea").all()] == [
            "of this window",
            "of the other window",
        ]


def test_a_note_can_be_written_anew(browser: Browser, report: KnownReport) -> None:
    """Its field stays while it is empty, and is gone when it is left so."""
    with ReportReader(browser, report.file) as reader:
        for state in ({"view": "query", "query": "0"}, {"view": "notes"}):
            page = reader.open({"view": "query", "query": "0"})
            page.locator(".query-head").locator(".note-add, textarea.note").click()
            page.locator(".query-head textarea.note").fill("first")
            page = reader.open(state)
            field = page.locator("textarea.note").first
            field.click()
            page.keyboard.press("Control+a")
            page.keyboard.press("Backspace")
            page.keyboard.type("just another")
            expect(field).to_have_value("just another")
        page.keyboard.press("Control+a")
        page.keyboard.press("Backspace")
        page.keyboard.press("Tab")
        expect(page.locator("textarea.note")).to_have_count(0)


@pytest.mark.parametrize("kept", ["{", "null", '{"format": "ftrace-notes", "version": 2, "notes": []}'])
def test_notes_that_cannot_be_read_are_said(browser: Browser, report: KnownReport, kept: str) -> None:
    with ReportReader(browser, report.file) as reader:
        page = reader.open({"view": "query", "query": "0"})
        page.locator(".query-head .note-add").click()
        page.locator(".query-head textarea.note").fill("x")
        page.evaluate("(kept) => Object.keys(localStorage).forEach((key) => localStorage.setItem(key, kept))", kept)
        page = reader.open({"view": "notes"})
        assert "can\u2019t be read" in page.locator(".notes .problems").inner_text()


def test_a_choice_that_a_query_does_not_offer_hides_nothing(browser: Browser, report: KnownReport) -> None:
    """Choices are kept from query to query, and there would be nothing to undo this one with."""
    with ReportReader(browser, report.file) as reader:
        for query in QUERIES:
            page = reader.open({"view": "query", "query": str(query)})
            listed = page.locator("section.proponents .entry").count()
            offered = page.locator(".filters option").evaluate_all("(options) => options.map((option) => option.value)")
            for name, choices in (("states", ("yes", "no", "said")), ("kind", ("same subject", "other"))):
                for choice in set(choices) - set(offered):
                    page = reader.open({"view": "query", "query": str(query), name: choice})
                    assert page.locator("section.proponents .entry").count() == listed, (query, choice)


def test_arrows_scroll_a_wide_table_that_has_the_focus(browser: Browser, report: KnownReport) -> None:
    with ReportReader(browser, report.file, width=400) as reader:
        page = reader.open({"view": "causal", "query": "0"})
        page.locator(".map .scroll").first.focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator(".pager .soft").first).to_have_text("1 of 3")
        assert "query=0" in page.url


@pytest.mark.parametrize("browser", ["chromium"], indirect=True)  # Playwright can't ask a system's Firefox for it
def test_colours_that_a_system_forces_hide_nothing(browser: Browser, report: KnownReport) -> None:
    with ReportReader(browser, report.file) as reader:
        reader.page.emulate_media(forced_colors="active")
        page = reader.open({"view": "query", "query": "0", "example": "3"})
        style = "(element, name) => getComputedStyle(element)[name]"
        paper = page.locator("html").evaluate(style, "backgroundColor")
        assert page.locator(".bar .plus").first.evaluate(style, "backgroundColor") != paper
        assert page.locator(".entry.chosen").evaluate(style, "outlineStyle") == "solid"
        for links in (".tabs", ".methods", ".page-head nav"):
            current = page.locator(f"{links} [aria-current]").evaluate(style, "textDecorationLine")
            other = page.locator(f"{links} a:not([aria-current])").first.evaluate(style, "textDecorationLine")
            assert (current, other) == ("underline", "none"), links
        page = reader.open({"view": "causal", "query": "0"})
        lines = {
            page.locator(f".effects tr{rows} th[scope=row]").first.evaluate(style, "borderRightColor")
            for rows in (".subject", ":not(.subject)")
        }
        assert len(lines) == 2
