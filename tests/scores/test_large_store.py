"""A store of 10^6 x 100 opens and is shown without being loaded."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftrace.scores import ScoreStore, ScoreWriter, Sum
from ftrace.scores.stored_scores import StoredScores

EXAMPLES, QUERIES = 10**6, 100
MATRIX_BYTES = 4 * EXAMPLES * QUERIES


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose file has holes: a few numbers take place on disk."""
    folder = tmp_path_factory.mktemp("large") / "store"
    with ScoreWriter(folder, np.arange(EXAMPLES), np.arange(QUERIES), ["dot", "learning"]) as writer:
        writer.put("dot", np.array([[2.0], [1.0]]), slice(500, 502), slice(3, 4))
        writer.finish()
    return folder


def shown(store: ScoreStore) -> None:
    assert "1,000,000 examples x 100 queries" in repr(store)


def shown_in_a_notebook(store: ScoreStore) -> None:
    assert "<td" in store._repr_html_()


def asked_for_the_strongest(store: ScoreStore) -> None:
    assert store.top(3, 2)[0].tolist() == [500, 501]


def tabled(store: ScoreStore) -> None:
    assert store.to_pandas(3, k=2)["dot"].tolist() == [2.0, 1.0]


def labelled(store: ScoreStore) -> None:
    array = store.to_xarray()
    assert "values with dtype=float32" in repr(array)
    assert array._repr_html_()
    assert float(array.sel(kind="dot", query=3).max()) == 2.0
    assert array.sel(kind="dot", query=3, example=500) == 2.0


@pytest.mark.parametrize("look", [shown, shown_in_a_notebook, asked_for_the_strongest, tabled, labelled])
def test_looking_reads_a_few_columns(
    large: Path, look: Callable[[ScoreStore], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays are mapped and never copied whole, and few queries' columns are read."""
    read: list[tuple[int, Sum]] = []
    column = StoredScores.column

    def counting(store: StoredScores, place: int, key: Sum, rows: np.ndarray | None = None) -> np.ndarray:
        read.append((place, key))
        return column(store, place, key, rows)

    monkeypatch.setattr(StoredScores, "column", counting)

    def whole(*_: Any, **__: Any) -> None:
        raise AssertionError("an array was read whole")

    monkeypatch.setattr(np.lib.format, "read_array", whole)
    look(ScoreStore.open(large))  # imports what it needs
    read.clear()
    tracemalloc.start()
    try:
        look(ScoreStore.open(large))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MATRIX_BYTES / 5
    assert len(read) <= 5
