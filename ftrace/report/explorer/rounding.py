"""Numbers of a report: rounded to what anybody reads, and null where they are not known."""

from __future__ import annotations

import math
from collections.abc import Iterable


def rounded(value: float | None, digits: int = 3) -> float | None:
    """Round a number to significant digits; None if it is not known or not finite.

    Example:
        >>> rounded(0.0123456), rounded(-1234.5), rounded(float("nan"))
        (0.0123, -1230.0, None)
    """
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def all_rounded(values: Iterable[float], digits: int = 3) -> list[float | None]:
    """Round several numbers as :func:`rounded`."""
    return [rounded(float(value), digits) for value in values]
