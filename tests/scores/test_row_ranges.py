"""Matrices that are written by ranges of rows: the file is the one that numpy would write, whatever the range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ftrace.scores import row_ranges as module_of_ranges
from ftrace.scores.row_ranges import row_ranges, write_in_columns


@pytest.mark.parametrize("range_bytes", [1, 100, 2**20])
@pytest.mark.parametrize("shape", [(23, 5), (23, 0), (0, 5), (23,), (0,)])
def test_a_matrix_in_ranges_is_the_file_that_numpy_writes(
    shape: tuple[int, ...], range_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_of_ranges, "RANGE_BYTES", range_bytes)
    scores = np.random.default_rng(0).normal(size=shape)
    order = np.random.default_rng(1).permutation(len(scores))
    write_in_columns(tmp_path / "ranges.npy", scores, order, np.float32)
    np.save(tmp_path / "whole.npy", np.asfortranarray(scores[order], np.float32))
    if scores.size:  # numpy has no order of empty ones
        assert (tmp_path / "ranges.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    np.testing.assert_array_equal(np.load(tmp_path / "ranges.npy"), scores[order].astype(np.float32), strict=True)
    read = [rows for _, rows in row_ranges(scores, order)]
    np.testing.assert_array_equal(np.concatenate([*read, scores[:0]]), scores[order])
