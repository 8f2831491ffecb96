"""What `ftrace show` makes of odd names: colons in paths, kinds that aren't there, names that no one could type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ftrace.cli import main
from ftrace.scores import ScoreStore, stable_id
from helpers.made_store import make_store


def test_a_colon_in_a_path_is_part_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "a: b" / "s")
    assert main(["show", f"{store.path}:learning"]) == 0
    assert main(["show", str(store.path)]) == 0
    capsys.readouterr()
    assert main(["show", str(tmp_path / "a: b" / "none")]) == 2
    assert "a: b/none'" in capsys.readouterr().err


def test_a_kind_that_no_store_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ScoreStore.write(tmp_path / "bm25", np.array([1]), np.array([0]), {"bm25": np.ones((1, 1))})
    assert main(["show", f"{store.path}:nope"]) == 2
    assert main(["show", str(store.path), "--kind", "nope"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "expected one of the kinds bm25, found 'nope'" in first
    assert "expected one of the kinds of these stores, bm25, found 'nope'" in second


@pytest.mark.parametrize("name", ["\u202eright", "\x1b[31mred", "two\nlines", "--k"])
def test_the_named_command_can_be_typed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = stable_id(name)
    store = ScoreStore.write(
        tmp_path / "s", np.array([1]), np.array([query]), {"dot": np.ones((1, 1))}, names={query: name}
    )
    assert main(["show", str(store.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 query, by s dot"
    assert f"One of them: ftrace show {store.path} --query {query}" in lines
    assert main(["show", str(store.path), "--query", str(query)]) == 0
