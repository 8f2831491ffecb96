"""The picture of precision by the step at which queries were learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ftrace.evaluation import Estimate
from ftrace.evaluation.retrieval import LearnedBin, LearnedMethod
from ftrace.report import plot_learned_when


def test_every_row_and_bin_is_drawn(tmp_path: Path) -> None:
    sure, unsure = Estimate(0.9, 0.8, 0.95), Estimate(0.5, np.nan, np.nan)
    methods = {f"method {i}": LearnedMethod(sure if i else unsure, 1.0, None) for i in range(12)}
    bins = [LearnedBin(5, 20, 7, methods), LearnedBin(-1, -1, 3, methods)]
    file = plot_learned_when(bins, tmp_path / "when.svg")
    drawn = file.read_text()
    for text in ("5 to 20", "7 queries", "never", "method 0", "method 11", "P@10"):
        assert f"<!-- {text}" in drawn or text in drawn
    assert [path.name for path in tmp_path.iterdir()] == ["when.svg"]


def test_no_bins_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one bin of queries, found none"):
        plot_learned_when([], tmp_path / "when.png")
