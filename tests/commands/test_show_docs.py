"""The example in docs/show.md prints what stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ftrace.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "show.md").read_text()


def test_the_example_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(program, "show.md", "exec"), {})
    examples = re.findall(r"```\n\$ ftrace (.*?)\n(.*?)```", PAGE, re.S)
    assert len(examples) == 2
    for command, printed in examples:
        assert main(shlex.split(command)) == 0
        assert capsys.readouterr().out == printed
