"""Numbers as a person reads them in tables and lists: none that isn't 0 is shown as 0."""

from __future__ import annotations

import math


def score_text(score: float, largest: float) -> str:
    """Format a score with its sign.

    Args:
        score: The score.
        largest: The largest absolute score beside it, which gets three digits, and the others as many decimals. A score
            that would be less than one in the last of them gets three digits of its own.

    Example:
        >>> score_text(0.2, 0.406), score_text(-3, 1234), score_text(2e-9, 5e-9)
        ('+0.200', '-3', '+2.00e-09')
        >>> score_text(0.0004, 0.406), score_text(-4e-7, 0.406), score_text(0.0, 0.406)
        ('+0.000400', '-4.00e-07', '0')
    """
    if not score:
        return "0"
    if not 1e-4 <= largest < 1e7:
        return f"{score:+.2e}"
    decimals = max(0, 2 - math.floor(math.log10(largest)))
    is_seen = abs(score) >= 10.0**-decimals or math.isnan(score)
    return f"{score:+.{decimals}f}" if is_seen else score_text(score, abs(score))


def points(share: float) -> str:
    """Format a difference of shares in percentage points, with its sign; NaN gives an empty text.

    Example:
        >>> points(0.00412), points(float("nan")), points(0.0000021), points(0.0)
        ('+0.41', '', '+0.00021', '+0.00')
    """
    value = 100 * share
    is_seen = not value or abs(value) >= 0.01
    return "" if math.isnan(share) else f"{value:+.2f}" if is_seen else f"{value:+.2g}"
