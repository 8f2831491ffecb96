"""The page: one script and one style, allowed by their hashes and nothing else, and a paragraph for those without."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import ftrace.report.explorer
from ftrace.report.explorer.page.app_parts import PARTS, STYLES
from ftrace.report.explorer.page.page import page

APP = Path(ftrace.report.explorer.__path__[0]) / "app"

TITLE = 'a "b" <script>alert(1)</script> \u202e&'


class Parts(HTMLParser):
    """The elements of a page, and what is in its script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.tag: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.tag = tag

    def handle_endtag(self, tag: str) -> None:
        self.tag = None

    def handle_data(self, data: str) -> None:
        if self.tag is not None:
            self.texts[self.tag] = self.texts.get(self.tag, "") + data


def hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@pytest.mark.parametrize("in_one_file", [True, False])
def test_policy_allows_the_script_and_the_style_of_the_page_only(in_one_file: bool) -> None:
    parts = Parts("".join(page(TITLE, in_one_file=in_one_file)))
    (policy,) = (
        found["content"] for _, found in parts.elements if found.get("http-equiv") == "Content-Security-Policy"
    )
    assert [tag for tag, _ in parts.elements].count("script") == 1
    assert [tag for tag, _ in parts.elements].count("style") == 1
    assert policy is not None
    assert dict(rule.split(" ", 1) for rule in policy.split("; ")) == {
        "default-src": "'none'",
        "script-src": hashed(parts.texts["script"]) + ("" if in_one_file else " 'self'"),
        "style-src": hashed(parts.texts["style"]),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not {"src", "href", "style"} & {name for _, attributes in parts.elements for name in attributes}


def test_title_is_text_and_what_is_missing_is_said() -> None:
    before, after = page(TITLE, in_one_file=True)
    parts = Parts(before + after)
    shown = r'a "b" <script>alert(1)</script> \u202e&'
    assert parts.texts["title"] == parts.texts["bdi"] == shown
    assert "Which training examples taught" in parts.texts["p"]
    assert "JavaScript is switched off" in parts.texts["strong"]
    assert ("html", {"lang": "en"}) in parts.elements
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in parts.elements


def test_every_part_of_the_app_is_in_the_page() -> None:
    assert {file.name for file in APP.iterdir() if not file.name.endswith(".d.ts")} == {*PARTS, *STYLES}
    assert len({*PARTS, *STYLES}) == len(PARTS) + len(STYLES)


def test_script_brings_its_licences_and_asks_for_no_source_map() -> None:
    script = page("", in_one_file=True)[1]
    assert len(re.findall("Permission is hereby granted", script)) == 1
    assert "sourceMappingURL" not in script
    assert "export{" not in script
