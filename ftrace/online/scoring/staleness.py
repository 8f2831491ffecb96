"""The staleness of query gradients: how much products change at a refresh, measured at some of the refreshes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ftrace.gradients import PerExampleGradients, QueryGradients, inner_products
from ftrace.scores.correlation import rank_correlation


class Staleness:
    """The rank correlation of a batch's products with stale and with fresh query gradients.

    Args:
        every: The number of refreshes from one measurement to the next; 0: never.

    Attributes:
        measured: By refresh, Spearman's correlation over the batch's examples, averaged over queries.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.measured: dict[int, float] = {}
        self._stale: QueryGradients | None = None
        self._refresh = 0

    def before_refresh(self, queries: QueryGradients | None, refreshes: int) -> bool:
        """Keep the query gradients that are about to be replaced, if a measurement is due.

        Args:
            refreshes: The number of refreshes so far.

        Returns:
            Whether they are kept.
        """
        if not self.every or queries is None or refreshes % self.every:
            return False
        self._stale, self._refresh = queries, refreshes
        return True

    @property
    def is_due(self) -> bool:
        """Whether the next batch's gradients are needed for a measurement."""
        return self._stale is not None

    def after_backward(self, gradients: PerExampleGradients, fresh: QueryGradients | None) -> None:
        """Measure with the first batch after the refresh, if stale query gradients were kept."""
        if self._stale is None or fresh is None or len(gradients) < 2:
            return
        stale, self._stale = self._stale, None
        names = list(gradients.parts)
        old = inner_products(gradients, stale, names)
        new = inner_products(gradients, fresh, names)[:, : len(stale)]
        self.measured[self._refresh] = mean_rank_correlation(old, new)

    def state(self) -> dict[str, Any]:
        """Return the measurements."""
        return {"staleness": dict(self.measured)}

    def load(self, shared: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.measured = shared["staleness"]


def mean_rank_correlation(first_BQ: Tensor, second_BQ: Tensor) -> float:
    """Average Spearman's correlation, which is over examples, over the queries for which it is defined; else NaN.

    It is undefined for queries with products that are NaN, infinite, or all equal on one of the two sides.
    """
    sides = (side.float().T.numpy(force=True) for side in (first_BQ, second_BQ))
    correlations = [rank_correlation(*of_query) for of_query in zip(*sides, strict=True)]
    known = [correlation for correlation in correlations if not math.isnan(correlation)]
    return sum(known) / len(known) if known else math.nan
