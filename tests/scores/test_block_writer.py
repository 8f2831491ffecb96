"""A store written in blocks is the store written at once, or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ftrace.scores import ScoreStore, ScoreWriter, Sum

EXAMPLES, QUERIES = np.array([2, 3, 5, 8, 13]), np.array([7, 1, 4])
KEYS = [Sum("dot"), Sum("dot", "layer", "a"), Sum("dot", "layer", "b"), Sum("cosine")]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_make_the_whole(dtype: type, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    scores = {key: drawn.normal(size=(5, 3)).astype(dtype) for key in KEYS}
    whole = ScoreStore.write(tmp_path / "whole", EXAMPLES, QUERIES, scores, {"method": "mine"})
    with ScoreWriter(tmp_path / "blocks", EXAMPLES, QUERIES, KEYS, dtype) as writer:
        for columns in (slice(1, 3), slice(0, 1)):
            for rows in (slice(4, 8), slice(0, 4)):
                for key, values in scores.items():
                    writer.put(key, values[rows, columns], rows, columns)
        assert not (tmp_path / "blocks").exists()
        blocks = writer.finish({"method": "mine"})
    assert blocks.manifest == whole.manifest
    files = {path.name for path in blocks.path.iterdir()}
    assert files == {path.name for path in whole.path.iterdir()}
    for name in files - {"manifest.json"}:
        one, other = np.load(blocks.path / name), np.load(whole.path / name)
        np.testing.assert_array_equal(one, other)
        assert one.flags["F_CONTIGUOUS"] == other.flags["F_CONTIGUOUS"]


def test_what_is_not_finished_leaves_nothing_and_the_earlier_store(tmp_path: Path) -> None:
    ScoreStore.write(tmp_path / "s", EXAMPLES, QUERIES, {"dot": np.ones((5, 3))})
    with ScoreWriter(tmp_path / "s", EXAMPLES, QUERIES, ["dot"]) as writer:
        writer.put("dot", np.zeros((5, 3)))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert (ScoreStore.open(tmp_path / "s").matrix() == 1).all()
    with ScoreWriter(tmp_path / "s", EXAMPLES, QUERIES, ["dot"]) as writer:
        store = writer.finish()
    assert not store.matrix().any()


def test_bad_ids_and_folders(tmp_path: Path) -> None:
    for examples, queries in ((EXAMPLES[::-1], QUERIES), (np.array([1, 1]), QUERIES), (EXAMPLES, np.array([1, 1]))):
        with pytest.raises(ValueError, match="ascending order, and each example and query once"):
            ScoreWriter(tmp_path / "s", examples, queries, ["dot"])
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ValueError, match="won't write scores to"):
        ScoreWriter(tmp_path, EXAMPLES, QUERIES, ["dot"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_ids_that_are_further_apart_than_64_bits_ascend(tmp_path: Path) -> None:
    ids = np.array([-(2**63), 0, 2**63 - 1])
    with ScoreWriter(tmp_path / "s", ids, QUERIES, ["dot"]) as writer:
        writer.put("dot", np.ones((3, 3)))
        assert writer.finish().example_ids.tolist() == ids.tolist()
