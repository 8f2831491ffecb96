"""Spearman's rank correlation, with one rule for all that use it: where it is undefined, it is NaN.

A constant side has no order, so the correlation is 0 / 0. Calling it 0 would claim that the sides are unrelated. What a
method earns for scores without an order is for its caller to decide; a mean over queries leaves these queries out, and
says so.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Correlation = Callable[[np.ndarray, np.ndarray], float]


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Correlate the ranks of two lists of numbers; ties share their mean rank.

    Args:
        first: ``[N]``.
        second: ``[N]``.

    Returns:
        From -1 to 1; NaN where a side is constant or has fewer than two values, or where a value is NaN or infinite.

    Raises:
        ValueError: If they are not two lists of equal length.

    Example:
        >>> rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.3, 0.2]))
        0.5
        >>> rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([5.0, 5.0, 5.0]))
        nan
    """
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"expected two lists of as many numbers, found shapes {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return float("nan")
    a, b = centred_ranks(first), centred_ranks(second)
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size else float("nan")


def finite_correlation(correlation: Correlation, first: np.ndarray, second: np.ndarray) -> float:
    """Correlate two lists of numbers, ``[N]`` each, where both are finite.

    Returns:
        NaN where fewer than two such pairs are left.
    """
    is_known = np.isfinite(first) & np.isfinite(second)
    return correlation(first[is_known], second[is_known])


def centred_ranks(values: np.ndarray) -> np.ndarray:
    """Give ranks minus their mean, ``[N]`` float64; ties share their mean rank.

    Raises:
        ValueError: If a value is NaN or infinite, which has no rank.
    """
    if not np.isfinite(values).all():
        raise ValueError("expected finite values to rank, found NaN or infinity. Leave them out")
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (counts.cumsum() - (counts - 1) / 2)[place]
    return ranks - ranks.mean() if len(ranks) else ranks
