"""A reader of a report: a page of a browser, and what goes wrong in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from urllib.parse import urlencode

from playwright.sync_api import Browser, ConsoleMessage, Error, Page

from helpers.browsers import new_context

# By view, an element that is there as soon as the view is.
VIEWS = {
    "queries": ".query-table tbody tr",
    "query": "section.proponents",
    "compare": "table.compared",
    "tokens": ".token-examples li",
    "causal": "table.effects",
    "example": ".example-page .query-scores",
    "run": ".run .how",
    "notes": ".notes",
}
_LISTEN = "addEventListener('securitypolicyviolation', (e) => (window.violations ??= []).push(e.violatedDirective))"


class ReportReader:
    """A page in a context of its own, in which a report is read.

    Args:
        browser: The browser.
        report: The page's file.
        width: Of the window, in pixels.

    Attributes:
        page: The browser's page.
        problems: Errors in the console and of scripts, so far.
        requests: Addresses that were asked for, so far.
    """

    def __init__(self, browser: Browser, report: Path, width: int = 1300) -> None:
        self._uri = report.as_uri()
        self._context = new_context(browser, viewport={"width": width, "height": 900})
        self._context.add_init_script(_LISTEN)
        self.page = self._context.new_page()
        self.page.set_default_timeout(10_000)
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._listen)
        self.page.on("pageerror", self._note_error)
        self.page.on("request", lambda request: self.requests.append(request.url))

    def __enter__(self) -> ReportReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Hold that nothing went wrong, if nothing else did, and close the page."""
        try:
            if kind is None:
                self.check()
        finally:
            self._context.close()

    def open(self, state: Mapping[str, str] | str = "", wait_for: str | None = None) -> Page:
        """Open an address of the report anew, and wait for its view.

        Args:
            state: What stands after the ``#``, or its parts.
            wait_for: A selector; default: what :data:`VIEWS` says of the view.
        """
        fragment = state if isinstance(state, str) else urlencode(state)
        view = "queries" if isinstance(state, str) else state.get("view", "queries")
        self.page.goto("about:blank")
        self.page.goto(f"{self._uri}#{fragment}")
        self.page.locator(wait_for or VIEWS[view]).first.wait_for()
        return self.page

    @contextmanager
    def another(self) -> Iterator[Page]:
        """Open another window of the same reader, who has the same notes, and close it at the end."""
        page = self._context.new_page()
        page.set_default_timeout(10_000)
        yield page
        page.close()

    def check(self) -> None:
        """Hold that there was no error, that nothing was asked for but the report, and that its policy held."""
        violations = self.page.evaluate("window.violations ?? []")
        folder = re.escape(self._uri.rsplit("/", 1)[0])
        strays = [
            address
            for address in self.requests
            if not re.match(rf"({re.escape(self._uri)}|{folder}/chunks/[a-z]+(-[0-9]+)?\.js)(#|$)", address)
            and address.partition(":")[0] not in ("about", "blob", "data")
        ]
        assert not self.problems + violations + strays

    def texts(self, selector: str) -> list[str]:
        """Return the texts of all elements that a selector finds."""
        return self.page.locator(selector).all_inner_texts()

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def _note_error(self, error: Error) -> None:
        self.problems.append(str(error))


def number(text: str) -> tuple[float, float]:
    """Return the number that a text of the page shows, and by how much rounding may have moved it."""
    digits = text.replace("\u2212", "-").replace(",", "").removeprefix("=").removesuffix("%")
    value = float(digits)
    mantissa, _, exponent = digits.partition("e")
    decimals = len(mantissa.partition(".")[2])
    return value, 0.5001 * 10.0 ** (int(exponent or 0) - decimals)
