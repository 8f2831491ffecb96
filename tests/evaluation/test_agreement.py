"""How well two ways to score agree, with scores that are NaN or infinite among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ftrace.evaluation.agreement import agreement, finite_correlation, pearson_correlation
from ftrace.scores import ScoreStore
from ftrace.scores.correlation import rank_correlation

OURS, THEIRS = np.random.default_rng(0).normal(size=(2, 30, 4))
QUERIES = [7, 8, 9, 10]


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first, second)[0, 1])


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Without ties."""
    return pearson(*(np.argsort(np.argsort(side)) for side in (first, second)))


def store(folder: Path, scores: np.ndarray) -> ScoreStore:
    return ScoreStore.write(folder, np.arange(30), np.array(QUERIES), {"dot": scores})


def chunks(scores: np.ndarray) -> list[tuple[np.ndarray, torch.Tensor]]:
    return [(np.arange(10), torch.from_numpy(scores[:10])), (np.arange(10, 30), torch.from_numpy(scores[10:]))]


def test_correlations_are_those_of_numpy(tmp_path: Path) -> None:
    found = agreement(chunks(OURS), QUERIES, store(tmp_path / "a", THEIRS))
    for query in range(4):
        assert found.pearson[query] == pytest.approx(pearson(OURS[:, query], THEIRS[:, query]), abs=1e-6)
        assert found.spearman[query] == pytest.approx(spearman(OURS[:, query], THEIRS[:, query]), abs=1e-6)
        first, second = (set(np.argsort(-side[:, query])[:10].tolist()) for side in (OURS, THEIRS))
        assert found.top[query] == len(first & second) / 10
    assert "of 4 queries: Pearson" in str(found)
    assert "Left out" not in str(found)


@pytest.mark.filterwarnings("ignore:The variance of predictions or target")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_left_out(tmp_path: Path, bad: float) -> None:
    ours, theirs = OURS.copy(), THEIRS.copy()
    ours[[3, 4], 1], theirs[5, 1] = bad, bad
    theirs[:, 2] = bad
    theirs[:, 3] = 0.5
    found = agreement(chunks(ours), QUERIES, store(tmp_path / "a", theirs))
    kept = np.delete(np.arange(30), [3, 4, 5])
    one, other = ours[kept, 1], theirs[kept, 1].astype(np.float32)
    assert found.pearson[1] == pytest.approx(pearson(one, other), abs=1e-6)
    assert found.spearman[1] == pytest.approx(spearman(one, other), abs=1e-6)
    shared = set(np.argsort(-one)[:10].tolist()) & set(np.argsort(-other)[:10].tolist())
    assert found.top[1] == len(shared) / 10
    assert np.isnan([found.pearson[2], found.spearman[2], found.top[2]]).all()
    assert np.isnan([found.pearson[3], found.spearman[3]]).all()
    assert found.not_finite == 33
    said = str(found)
    assert f"of 2 queries: Pearson {np.median(found.pearson[:2]):.3f} in the median" in said
    assert "Left out: 33 pairs of example and query with a score that is NaN or infinite" in said
    assert "Left out: 2 queries whose scores are constant, or NaN or infinite" in said
    nothing = str(agreement(chunks(np.full_like(ours, bad)), QUERIES, store(tmp_path / "b", theirs)))
    assert "of 0 queries. Left out: 120 pairs" in nothing


def test_a_correlation_is_over_what_both_sides_know() -> None:
    first, second = np.array([1.0, np.nan, 3.0, 4.0, 9.0]), np.array([2.0, 5.0, np.inf, 1.0, 7.0])
    expected = spearman(np.array([1.0, 4.0, 9.0]), np.array([2.0, 1.0, 7.0]))
    assert finite_correlation(rank_correlation, first, second) == pytest.approx(expected)
    assert np.isnan(finite_correlation(pearson_correlation, first[:2], second[:2]))
