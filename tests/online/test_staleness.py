"""The rank correlation of products before and after a refresh."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional import spearman_corrcoef

from ftrace.online.scoring.staleness import mean_rank_correlation


def test_it_is_the_mean_over_queries_of_spearmans() -> None:
    first, second = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    expected = sum(float(spearman_corrcoef(a, b)) for a, b in zip(first.T, second.T, strict=True)) / 3
    assert mean_rank_correlation(first, second) == pytest.approx(expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_queries_with_products_that_are_not_finite_are_left_out(bad: float) -> None:
    first, second = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    expected = mean_rank_correlation(first[:, [0, 2]], second[:, [0, 2]])
    second[4, 1] = bad
    assert mean_rank_correlation(first, second) == pytest.approx(expected)
    assert mean_rank_correlation(first[:, :1], second[:, :1]) == pytest.approx(
        float(spearman_corrcoef(first[:, 0], second[:, 0]))
    )
    assert math.isnan(mean_rank_correlation(first[:, 1:2], second[:, 1:2]))


def test_queries_whose_products_are_all_alike_are_left_out() -> None:
    first, second = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    expected = mean_rank_correlation(first[:, [0, 2]], second[:, [0, 2]])
    second[:, 1] = 0
    assert mean_rank_correlation(first, second) == pytest.approx(expected)
    assert math.isnan(mean_rank_correlation(first[:, 1:2], second[:, 1:2]))
