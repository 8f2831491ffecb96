"""What prompts, notebooks and pandas show of a gradient index."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftrace.index import index_views, write_examples, write_names
from ftrace.scores import Texts
from helpers.made_index import make_index

SEGMENTS = [[3, 1, 2, 1], [2, 4]]


def test_it_says_what_it_holds(tmp_path: Path) -> None:
    index, _ = make_index(tmp_path / "<i>", SEGMENTS)
    assert repr(index).splitlines() == [
        f"GradientIndex('{tmp_path}/<i>'): 6 rows of 8 numbers in 2 segments",
        "  rows: gaussian, projected to 2 x 2",
        "  dtype: float64",
        "  covered: 2 parameters in 2 blocks",
        "  texts: none",
    ]
    page = index._repr_html_()
    assert "6 rows of 8 numbers in 2 segments" in page
    assert "segment-00000010" in page
    assert "&lt;i&gt;" in page
    assert "<i>" not in page


def test_its_rows_are_tabled(tmp_path: Path) -> None:
    index, _ = make_index(tmp_path / "index", SEGMENTS, rows_of_shard=3)
    table = index.to_pandas()
    assert table.columns.tolist() == ["segment", "step", "example_id", "weight"]
    assert table["example_id"].tolist() == [3, 1, 2, 1, 2, 4]
    assert table["segment"].tolist() == [0, 0, 0, 0, 10, 10]
    assert table["weight"].tolist() == pytest.approx([0.4, 0.2, 0.3, 0.2, 0.3, 0.5])


def test_examples_have_their_names(tmp_path: Path) -> None:
    index, _ = make_index(tmp_path / "index", SEGMENTS)
    write_names(index.folder, {3: "three", 1: "one"})
    assert index.to_pandas()["example_name"].tolist() == ["three", "one", "2", "one", "2", "4"]
    assert index.names_of_examples.of([1, 7]) == ["one", "7"]


def test_names_may_stand_in_texts_alone(tmp_path: Path) -> None:
    index, _ = make_index(tmp_path / "index", SEGMENTS)
    rows = [{"example_id": 3, "text": "three is odd", "name": "three"}, {"example_id": 2, "text": "two is even"}]
    write_examples(index.folder, Texts.of(rows, "example_id"))
    assert index.to_pandas()["example_name"].tolist() == ["three", "1", "2", "1", "2", "4"]
    assert repr(index).endswith("texts: of examples")


def test_a_gigantic_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, _ = make_index(tmp_path / "index", SEGMENTS)
    monkeypatch.setattr(index_views, "_MOST_ROWS", 5)
    with pytest.raises(ValueError, match=r"at most 5 rows, found 6. Take the arrays segment\.ids"):
        index.to_pandas()
