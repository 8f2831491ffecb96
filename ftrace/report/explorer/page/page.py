"""The page of a report: its script, its style and a policy by which it can load nothing else.

The scripts in ``app/`` share one scope: they are joined in the order of ``app_parts.py`` into one function, after
preact. So nothing has to be built, neither when ftrace is installed nor when a report is made, and equal
input gives equal bytes.

What a reader sees without JavaScript is a paragraph that says what the page is and what is missing.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from functools import cache
from pathlib import Path

from ftrace.report.explorer.format import FORMAT, VERSION
from ftrace.report.explorer.page.app_parts import PARTS, STYLES
from ftrace.shown_text import plain

# By this a report is known as ours, of whatever version: it stands before the title and whatever else comes from data.
_SIGN = f'''<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="{FORMAT} '''
_FOLDER = Path(__file__).parents[1]
_EXPORTS = re.compile(r"export\s*\{([^{}]*)\};?\s*$")
_SOURCE_MAP = re.compile(
    r"^//# sourceMappingURL=.*$", re.MULTILINE
)  # a request as soon as somebody looks into the page


def page(title: str, *, in_one_file: bool) -> tuple[str, str]:
    """Return what stands in a page before its chunks, and after them.

    Args:
        title: The report's; any text.
        in_one_file: Whether the chunks stand in the page, or in files beside it.
    """
    script, style = _script(), _style()
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hashed(script)}" + ("" if in_one_file else " 'self'"),
            f"style-src {_hashed(style)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    shown = html.escape(plain(title))
    before = f"""{_SIGN}{VERSION}">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{shown}</title>
<style>{style}</style>
</head>
<body>
<div id="app">
<main class="before">
<h1><bdi>{shown}</bdi></h1>
<p>Which training examples taught a language model what it says, and how much each of them contributed: a report by
ftrace. It needs no server and no network.</p>
<noscript><p><strong>JavaScript is switched off, so nothing is shown.</strong> Allow it for this page: it loads nothing
from anywhere, and its policy forbids it to. Or read the same scores in a terminal, with <code>ftrace show</code>.</p>
</noscript>
<p class="late">If nothing else appears, the file was cut off on its way to you: copy it again.</p>
</main>
</div>
"""
    return before, f"<script>{script}</script>\n</body>\n</html>\n"


def is_report(file: Path) -> bool:
    """Return whether a file is the page of a report, of any version."""
    with file.open("rb") as stream:
        return stream.read(len(_SIGN)) == _SIGN.encode("ascii")


@cache
def _script() -> str:
    parts = [
        "(() => {",
        '"use strict";',
        _licence("preact"),
        _as_constant("preact", _read("vendor", "preact.mjs")),
        *(_read("app", name) for name in PARTS),
        "})();",
    ]
    return _checked("\n".join(parts), "</script", "<script", "<!--")


@cache
def _style() -> str:
    return _checked("\n".join(_read("app", name) for name in STYLES), "</style", "<!--")


def _read(folder: str, name: str) -> str:
    return (_FOLDER / folder / name).read_text(encoding="utf-8").strip()


def _as_constant(name: str, module: str) -> str:
    """Return a module as a script that defines a constant with what it exports."""
    module = _SOURCE_MAP.sub("", module).strip()
    exports = _EXPORTS.search(module)
    assert exports, f"{name} is not a module that ends with its exports"
    pairs = [pair.split(" as ") for pair in exports.group(1).split(",")]
    returned = ", ".join(f"{pair[-1].strip()}: {pair[0].strip()}" for pair in pairs)
    return f"const {name} = (() => {{\n{module[: exports.start()]}\nreturn {{ {returned} }};\n}})();"


def _licence(name: str) -> str:
    text = _read("vendor", f"{name}.LICENSE")
    assert "*/" not in text
    return f"/*! {name}\n\n{text}\n*/"


def _checked(text: str, *forbidden: str) -> str:
    """Make sure that a browser reads a script or a style to its end, and as the bytes whose hash is allowed."""
    strays = [part for part in forbidden if part in text.lower()]
    assert not strays, f"the page's script and style must not contain {strays}"
    assert "\r" not in text, "the page's script and style must not contain carriage returns"
    return text


def _hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
