"""Numbers as a report holds them: short, and null where they are not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_DIGITS = 6


def finite(value: float | np.floating | None) -> float | None:
    """Return a number of Python's own; None if it is not finite or not known."""
    return float(value) if value is not None and math.isfinite(value) else None


def exact(values: np.ndarray) -> list[float | None]:
    """Return numbers as the shortest decimals that are read back as the same ones.

    Args:
        values: ``[n]``, of any dtype. Read as this dtype, each decimal is the number.

    Example:
        >>> exact(np.array([0.1, np.nan], np.float32))
        [0.1, None]
    """
    decimals = values.astype("U").astype(np.float64) if values.dtype in (np.float16, np.float32) else values
    return _with_nulls(decimals.astype(np.float64))


def rounded(values: np.ndarray | Sequence[float], digits: int = _DIGITS) -> list[float | None]:
    """Return numbers with six significant digits, which is more than anybody reads, or with fewer.

    Args:
        values: ``[n]``.
        digits: The number of digits.

    Example:
        >>> rounded(np.array([1 / 3, 123456789, -np.inf]))
        [0.333333, 123457000.0, None]
    """
    values = np.asarray(values, np.float64)
    with np.errstate(all="ignore"):
        size = np.floor(np.log10(np.abs(values)))
        shift = digits - 1 - np.where(np.isfinite(size), size, 0)
        power = 10.0 ** np.abs(shift)
        short = np.where(shift >= 0, np.round(values * power) / power, np.round(values / power) * power)
    return _with_nulls(np.where(np.isfinite(short), short, values))


def _with_nulls(values: np.ndarray) -> list[float | None]:
    numbers: list[float | None] = values.tolist()
    for place in np.flatnonzero(~np.isfinite(values)).tolist():
        numbers[place] = None
    return numbers
