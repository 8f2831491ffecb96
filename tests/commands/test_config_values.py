"""Values of options and config files: nothing in them is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ftrace.commands.config_values import load
from helpers.command_line import code


@pytest.mark.parametrize("text", ["#16", "# a comment", "  #"])
def test_a_value_that_looks_like_a_comment_is_a_text(text: str) -> None:
    assert load(text) == text


def test_an_option_that_looks_like_a_comment_is_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert code("show", "absent", "--query", "#16", "--print_config") == 0
    assert yaml.safe_load(capsys.readouterr().out)["query"] == "#16"


def test_a_file_of_comments_is_empty() -> None:
    assert load("# k: 3\n# run: x\n") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k: 3\nrun: x\nk: 4\n", "line 1: expected each key once, found 'k' twice. Delete one"),
        ("a:\n  - {b: 1, b: 2}\n", "line 2: expected each key once, found 'b' twice"),
        ('{"k": 3, "k": 3}', "found 'k' twice"),
        ("[" * 100_000, "expected at most 100 lists|exceeded maximum nesting depth"),  # the second is libyaml's
        ("{a: " * 5000, "expected at most 100 lists and mappings in one another"),
    ],
    ids=lambda text: text[:20],
)
def test_what_would_be_ignored_or_end_the_process_is_refused(text: str, message: str) -> None:
    with pytest.raises(yaml.YAMLError, match=message):
        load(text)


def test_a_mapping_may_hold_itself() -> None:
    held = load("&a {b: *a}")
    assert held["b"] is held


def test_keys_that_come_twice_in_a_config_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "show.yaml").write_text("k: 3\nk: 4\n")
    assert code("show", "absent", f"--config={tmp_path / 'show.yaml'}") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "expected each key once, found 'k' twice" in line
