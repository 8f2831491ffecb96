"""Spearman's rank correlation against torchmetrics', with ties, and where it is undefined."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional import spearman_corrcoef

from ftrace.scores.correlation import centred_ranks, rank_correlation


def test_it_equals_torchmetrics_with_ties() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        first, second = generator.integers(0, 6, (2, 9)).astype(float)
        expected = float(spearman_corrcoef(torch.from_numpy(first), torch.from_numpy(second)))
        assert rank_correlation(first, second) == pytest.approx(expected, abs=1e-6)


def test_the_same_order_is_exactly_1() -> None:
    values = np.random.default_rng(1).normal(size=50)
    assert rank_correlation(values, np.exp(values)) == 1
    assert rank_correlation(values, -values) == -1


@pytest.mark.parametrize("side", [np.ones(4), np.array([1, np.nan, 3, 4]), np.array([np.inf, 1, 2, 3])])
def test_without_an_order_it_is_nan(side: np.ndarray) -> None:
    assert np.isnan(rank_correlation(side, np.arange(4.0)))
    assert np.isnan(rank_correlation(np.arange(4.0), side))


@pytest.mark.parametrize("count", [0, 1])
def test_of_fewer_than_two_values_it_is_nan(count: int) -> None:
    assert np.isnan(rank_correlation(np.arange(float(count)), np.arange(float(count))))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="expected two lists of as many numbers"):
        rank_correlation(np.ones(4), np.ones(3))
    with pytest.raises(ValueError, match=r"expected finite values to rank, found NaN or infinity\. Leave them out"):
        centred_ranks(np.array([1.0, np.nan]))
