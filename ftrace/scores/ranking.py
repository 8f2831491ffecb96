"""The strongest of a query's scores."""

from __future__ import annotations

import numpy as np

from ftrace.scores.ids import as_integer


def strongest(scores: np.ndarray, k: int, *, largest: bool = True) -> np.ndarray:
    """Find the positions of the k largest, or smallest, scores; equal scores in the order of positions.

    Args:
        scores: ``[N]``. Those that are NaN or infinite have no rank and are left out.
        k: How many, from 1 on; all where there are fewer.
        largest: Whether the largest come first, or the smallest.

    Returns:
        Positions, ``[min(k, finite scores)]``.

    Raises:
        ValueError: If k is not a whole number from 1 on.

    Example:
        >>> strongest(np.array([0.5, np.nan, 2.0, 0.5]), 2).tolist()
        [2, 0]
    """
    count = as_integer(k, "k", "a whole number from 1 on")
    if count < 1:
        raise ValueError(f"k: expected a whole number from 1 on, found {count}")
    places = np.flatnonzero(np.isfinite(scores))
    signed = -scores[places] if largest else scores[places]
    if count < len(signed):  # sorting a million scores would take most of the time
        near = signed <= np.partition(signed, count - 1)[count - 1]
        places, signed = places[near], signed[near]
    order: np.ndarray = places[np.argsort(signed, kind="stable")[:count]]
    return order
