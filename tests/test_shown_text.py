"""Texts from data are texts in terminals, CSV and Markdown, and nothing else."""

from __future__ import annotations

import ast
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import ftrace.console
from ftrace.console import PlainConsole, PlainTable
from ftrace.online import messages
from ftrace.shown_text import csv_cell, markdown_text, plain
from helpers.hostile_corpus import TEXTS, check_terminal

PACKAGE = Path(ftrace.console.__file__).parent


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"), ("+a", "'+a"), ("-a", "'-a"), ("@a", "'@a"), (" \t=1", "'  =1"), ("\uff1d1", "'\uff1d1"),
        ("-", "'-"), ("a=1", "a=1"), ("-1.5", "-1.5"), ("+1e3", "+1e3"), ("-inf", "-inf"), (-1.5, -1.5), (None, None),
        ("", ""), ("a\nb", "a ↵ b"), ("\r=1", r"\x0d=1"), ("-1+1", "'-1+1"), ("half \ud800", r"half \ud800"),
    ],
)  # fmt: skip
def test_no_cell_is_a_formula_and_numbers_stay(value: Any, cell: Any) -> None:
    assert csv_cell(value) == cell


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("array[i]", "array[i]"), ("a_b __c__ _d_", r"a_b \_\_c\_\_ \_d\_"), ("x|y", r"x\|y"), ("a\\|b", r"a\\\|b"),
        ("[a](b)", r"[a]\(b)"), ("![a](b)", r"![a]\(b)"), ("[a]: http://b", r"\[a]: http://b"), ("# a", r"\# a"),
        ("1. a", r"1\. a"), ("1.5 a", "1.5 a"), ("<b> & &lt; a < b", "&lt;b> & &amp;lt; a &lt; b"), ("a\nb", "a ↵ b"),
        ("`a` **b** ~~c~~ $d$", r"\`a\` \*\*b\*\* \~\~c\~\~ \$d\$"), ("> a", r"\> a"), ("", ""),
    ],
)  # fmt: skip
def test_markdown_shows_a_text_as_it_is(text: str, written: str) -> None:
    assert markdown_text(text) == written


@pytest.mark.parametrize("name", TEXTS)
def test_a_console_and_a_table_show_a_text_as_it_is(name: str) -> None:
    text = TEXTS[name][:100]
    shown = " ".join(plain(text).split())
    for console in (PlainConsole(file=StringIO(), width=500), Console(file=StringIO(), width=500)):
        table = PlainTable(title=text)
        table.add_column(text)
        table.add_row(text)
        console.print(table)
        lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
        check_terminal("\n".join(lines))
        assert sum(shown in line for line in lines) >= (1 if "\n" in text else 3)
    plain_console = PlainConsole(file=StringIO(), width=500)
    plain_console.print(text, soft_wrap=True)
    check_terminal(plain_console.file.getvalue())  # type: ignore[attr-defined]


def test_a_message_can_be_written_whatever_the_terminal_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    written = BytesIO()
    monkeypatch.setattr("sys.stdout", TextIOWrapper(written, encoding="ascii"))
    messages.tell("loss 3 → 2, \x1b[2J")
    assert written.getvalue() == b"loss 3 \\u2192 2, \\x1b[2J\n"


def test_nobody_prints_by_a_console_that_reads_markup() -> None:
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.name == "console.py" and file.parent == PACKAGE:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.module == "rich.markup"), file
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console":
                settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert settings.get("markup") == "False", f"{file}: take ftrace.console.PlainConsole"
