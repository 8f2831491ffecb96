"""How long a reader of a report waits, in the browsers that are there, and how much memory that takes.

    PYTHONPATH=tests python benchmarks/report_in_browsers.py
    PYTHONPATH=tests python benchmarks/report_in_browsers.py --folder runs/bench --repeats 9

Three reports are made of texts and scores that are drawn (``drawn_stores.py``) and opened as by double-click: a folder
of all queries, one file of as many as 20 MB hold, and a list of 2,000 queries, the most that a report has. What is
timed begins with the event, or with the navigation, and ends when the frame that shows its result has been painted.
Every opening is in a context of its own.

Limits: the first list within 2 s, the heap within 50 MB; a key, a letter or a frame within .1 s.
"""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlencode

import numpy as np
from drawn_stores import METHODS, open_stores, write_stores
from jsonargparse import auto_cli
from playwright.sync_api import Browser, Page
from rich.console import Console
from rich.table import Table

from ftrace.report.explorer.content.content import Content, ContentSettings
from ftrace.report.explorer.content.ranked_queries import RankedQueries
from ftrace.report.explorer.format import Head
from ftrace.report.explorer.page.chunks import HEAD, decode_chunk, encode_chunk, encoded_in_script, island
from ftrace.report.explorer.page.writing import CHUNKS, MAX_FILE_BYTES, write_report
from ftrace.views import StoreSource
from helpers.browsers import NAMES, launched, new_context

STOPWATCH = Path(__file__).with_name("report_stopwatch.js")
MOST_QUERIES = 2_000
FEW_EXAMPLES = 5_000  # behind the longest list
VISITED = (1, 20, 100)
TYPED = "kragor"
LETTER_GAP = 150  # milliseconds, after which a list has begun to grow
LONGEST_KEY, LONGEST_LIST, LARGEST_HEAP = 100, 2_000, 50

Waits = defaultdict[str, list[float]]


@dataclass(frozen=True)
class Report:
    """A report to be opened.

    Args:
        title: How the table calls it.
        page: What to open.
        ids: Of its queries, in order.
    """

    title: str
    page: Path
    ids: tuple[str, ...]


def main(
    folder: str,
    examples: int = 100_000,
    queries: int = 1_000,
    words: int = 35,
    seed: int = 0,
    repeats: int = 7,
    browsers: Sequence[str] = NAMES,
) -> None:
    """Make the reports, open them, and print what a reader waits for.

    Args:
        folder: Where stores and reports are kept, or were kept before.
        examples: Number of examples.
        queries: Number of queries.
        words: Words of a text, on average.
        seed: Of texts and scores.
        repeats: How often everything is timed.
        browsers: Which browsers.
    """
    place = Path(folder)
    _draw(place / "stores", examples, queries, words, seed)
    _draw(place / "many_stores", min(examples, FEW_EXAMPLES), MOST_QUERIES, words, seed)
    reports = [
        _folder_report(place / "stores", place / "report", queries),
        _file_report(place / "stores", place / "one_file.html", queries),
        _folder_report(place / "many_stores", place / "many", MOST_QUERIES, k=10, opponents=0),
    ]
    console = Console(width=140)
    for name in browsers:
        with launched(name) as browser:
            waits = {report: _waits(browser, report, repeats) for report in reports}
            console.print(_table(f"{name} {browser.version}", waits))
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    console.print(f"Milliseconds, or MB: median and range of {repeats}. Load: {load} on {os.cpu_count()} cores.")


def _draw(folder: Path, examples: int, queries: int, words: int, seed: int) -> None:
    if not (folder / METHODS[-1]).is_dir():
        write_stores(folder, examples, queries, words, seed)


def _content(stores: Path, queries: int, k: int, opponents: int) -> Content:
    sources = [StoreSource(store) for store in open_stores(stores)]
    ids = np.array(sources[0].query_ids)
    chosen = ids[np.linspace(0, len(ids) - 1, queries).round().astype(int)].tolist()
    return Content(RankedQueries(sources, chosen, k, opponents), "benchmark", ContentSettings())


def _folder_report(stores: Path, out: Path, queries: int, k: int = 100, opponents: int = 20) -> Report:
    page = out / "index.html"
    if not page.exists():
        content = _content(stores, queries, k, opponents)
        write_report(out, content.chunks(), title="benchmark", single_file=False)
    ids = _ids(encoded_in_script((out / CHUNKS / f"{HEAD}.js").read_text()))
    return Report(f"{len(ids):,} queries, a folder", page, ids)


def _file_report(stores: Path, out: Path, queries: int) -> Report:
    """Make one file of as many queries as it holds."""
    if not out.exists():
        while True:
            content = _content(stores, queries, 100, 20)
            size = content.estimated_size(lambda name, chunk: len(island(name, encode_chunk(chunk))))
            if size < 0.97 * MAX_FILE_BYTES:
                break
            queries = int(0.95 * queries * MAX_FILE_BYTES / size)
        write_report(out, content.chunks(), title="benchmark", single_file=True)
    ids = _ids(out.read_text().split(f'id="chunk-{HEAD}">')[1].split("<")[0])
    return Report(f"{len(ids):,} queries, one file of {out.stat().st_size / 1e6:.0f} MB", out, ids)


def _ids(encoded: str) -> tuple[str, ...]:
    head = cast(Head, decode_chunk(encoded))
    return tuple(head["queries"]["ids"])


def _waits(browser: Browser, report: Report, repeats: int) -> Waits:
    waits: Waits = defaultdict(list)
    for _ in range(repeats):
        _time_list(browser, report, waits)
        _time_query(browser, report, waits)
    if browser.browser_type.name == "chromium":
        _weigh(browser, report, waits)
    return waits


def _time_list(browser: Browser, report: Report, waits: Waits) -> None:
    with _opened(browser, report) as page:
        waits["the list is shown"].append(page.evaluate("stopwatch.first.list"))
        growing = page.evaluate("(count) => stopwatch.frames(() => stopwatch.rows() >= count)", len(report.ids))
        waits["longest frame while it grows"].append(max(growing, default=0))
        scrolling = page.evaluate("stopwatch.scrollToEnd()")
        waits["longest frame while it is scrolled to its end"].append(max(scrolling))
        _start(page, "keydown", "help")
        page.keyboard.press("?")
        waits["the help, over the whole list"].append(_wait(page))
        page.keyboard.press("?")
        page.evaluate("scrollTo(0, 0)")
        for column in ("P@10", "Query"):
            _start(page, "click", "list")
            page.locator("thead button", has_text=column).click()
            waits[f"sorting by {column}"].append(_wait(page))
        page.wait_for_timeout(600)
        page.keyboard.press("/")
        page.wait_for_timeout(100)
        page.evaluate("window.typed = stopwatch.letters(), 0")
        page.keyboard.type(TYPED, delay=LETTER_GAP)
        typed = page.evaluate("typed()")
        assert len(typed) == len(TYPED)
        for _ in TYPED:
            page.keyboard.press("Backspace", delay=LETTER_GAP)
        letters = page.evaluate("typed()")
        assert len(letters) == 2 * len(TYPED)
        waits["a letter of the search, median"].append(statistics.median(letters))
        waits["a letter of the search, slowest"].append(max(letters))


def _time_query(browser: Browser, report: Report, waits: Waits) -> None:
    with _opened(browser, report, {"view": "query", "query": report.ids[len(report.ids) // 2]}) as page:
        waits["a query's permalink"].append(page.evaluate("stopwatch.first.query"))
        page.wait_for_timeout(1_000)
        for _ in range(3):
            _start(page, "keydown", "query")
            page.keyboard.press("ArrowRight")
            waits["the next query"].append(_wait(page))
            page.wait_for_timeout(600)
        for what in ("the next query", "one more, right after it"):  # which has not been loaded before
            _start(page, "keydown", "query")
            page.keyboard.press("ArrowRight")
            waits[what].append(_wait(page))
        for what, selector, look in (
            ("another method", ".methods a:not([aria-current])", "examples"),
            ("methods compared", ".tabs a:has-text('Compare')", "compared"),
            ("an example's page", ".compared a.id", "example"),
        ):
            page.wait_for_timeout(300)
            _start(page, "click", look)
            page.locator(selector).first.click()
            waits[what].append(_wait(page))


def _weigh(browser: Browser, report: Report, waits: Waits) -> None:
    with _opened(browser, report) as page:
        page.evaluate("stopwatch.first.list")
        page.wait_for_timeout(1_000)
        waits["heap with the list (MB)"].append(_heap(page))
    with _opened(browser, report, {"view": "query", "query": report.ids[0]}) as page:
        page.evaluate("stopwatch.first.query")
        for visited in range(1, min(VISITED[-1], len(report.ids)) + 1):
            if visited in VISITED:
                page.wait_for_timeout(1_000)
                waits[f"heap after {visited} queries (MB)"].append(_heap(page))
            _start(page, "keydown", "query")
            page.keyboard.press("ArrowRight")
            _wait(page)


def _heap(page: Page) -> float:
    session = page.context.new_cdp_session(page)
    for _ in range(3):
        session.send("HeapProfiler.collectGarbage")
    usage = session.send("Runtime.getHeapUsage")
    session.detach()
    return float(usage["usedSize"] + usage.get("embedderHeapUsedSize", 0) + usage.get("backingStorageSize", 0)) / 1e6


@contextmanager
def _opened(browser: Browser, report: Report, state: dict[str, str] | None = None) -> Iterator[Page]:
    context = new_context(browser, viewport={"width": 1300, "height": 900})
    context.add_init_script(path=STOPWATCH)
    page = context.new_page()
    page.goto(f"{report.page.resolve().as_uri()}#{urlencode(state or {})}", wait_until="commit")
    try:
        yield page
    finally:
        context.close()


def _start(page: Page, event: str, look: str) -> None:
    page.evaluate("([event, look]) => { window.waiting = stopwatch.after(event, look); }", [event, look])


def _wait(page: Page) -> float:
    return float(page.evaluate("waiting"))


def _limit(what: str) -> int:
    if what in ("the list is shown", "a query's permalink"):
        return LONGEST_LIST
    return LARGEST_HEAP if what.startswith("heap") else LONGEST_KEY


def _table(title: str, waits: dict[Report, Waits]) -> Table:
    table = Table("", *(report.title for report in waits), "limit", title=title)
    for what in dict.fromkeys(what for of_report in waits.values() for what in of_report):
        limit = _limit(what)
        cells = [_cell(of_report.get(what, []), limit) for of_report in waits.values()]
        table.add_row(what, *cells, f"{limit:,}")
    return table


def _cell(values: Sequence[float], limit: float) -> str:
    if not values:
        return ""
    median = statistics.median(values)
    text = f"{median:,.0f}" if len(values) == 1 else f"{median:,.0f} [{min(values):,.0f}, {max(values):,.0f}]"
    return text if median <= limit else f"{text} !"


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
