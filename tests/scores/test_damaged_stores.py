"""What a store's files may not say: each is refused with one line, and nothing else is shown in its place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ftrace.scores import ScoreStore


def write(folder: Path, kind: str = "dot") -> ScoreStore:
    return ScoreStore.write(folder / "s", np.array([1, 2]), np.array([0]), {kind: np.ones((2, 1))})


@pytest.mark.parametrize("kind", ["example_ids", "a/b", "", "x" * 300])
def test_a_kind_can_be_the_name_of_a_file_of_its_own(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected kinds of scores that can be names of files"):
        write(tmp_path, kind)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("entry", "value"), [("kinds", "dot"), ("doubts", ["x"]), ("num_examples", "2")])
def test_a_manifest_has_entries_of_the_right_type(entry: str, value: object, tmp_path: Path) -> None:
    store = write(tmp_path)
    (store.path / "manifest.json").write_text(json.dumps({**store.manifest, entry: value}))
    with pytest.raises(ValueError, match=f"damaged score store: expected .* under '{entry}'"):
        ScoreStore.open(store.path)


def test_scores_are_numbers(tmp_path: Path) -> None:
    store = write(tmp_path)
    np.save(store.path / "dot.npy", np.array([["a"], ["b"]]))
    with pytest.raises(ValueError, match=r"dot\.npy: expected numbers, found <U1"):
        store.top(0)
