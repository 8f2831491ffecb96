"""How much scores would differ if the queries had been differentiated anew at each step: measured now and then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ftrace.gradients import PerExampleGradients, QueryGradients, inner_products
from ftrace.scores.correlation import rank_correlation


class Staleness:
    """Rank correlation of a batch's products with stale and with fresh query gradients.

    Args:
        every: At every so many refreshes; 0: never.

    Attributes:
        measured: By refresh: the mean over queries of Spearman's correlation over the batch's examples.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.measured: dict[int, float] = {}
        self._stale: QueryGradients | None = None
        self._refresh = 0

    def before_refresh(self, queries: QueryGradients | None, refreshes: int) -> bool:
        """Keep the query gradients that are about to be replaced, if it is time.

        Returns:
            Whether they are kept.
        """
        if not self.every or queries is None or refreshes % self.every:
            return False
        self._stale, self._refresh = queries, refreshes
        return True

    def after_backward(self, gradients: PerExampleGradients, fresh: QueryGradients | None) -> None:
        """Compare, with the first batch after the refresh."""
        if self._stale is None or fresh is None or len(gradients) < 2:
            return
        stale, self._stale = self._stale, None
        names = list(gradients.parts)
        old = inner_products(gradients, stale, names)
        new = inner_products(gradients, fresh, names)[:, : len(stale)]
        self.measured[self._refresh] = mean_rank_correlation(old, new)

    def state(self) -> dict[str, Any]:
        """Return what was measured."""
        return {"staleness": dict(self.measured)}

    def load(self, shared: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state` was called."""
        self.measured = shared["staleness"]


def mean_rank_correlation(first_BQ: Tensor, second_BQ: Tensor) -> float:
    """Average Spearman's correlation over examples over the queries for which it is defined; NaN without any.

    Queries with products that are NaN, infinite, or all alike on either side are left out.
    """
    sides = (side.float().T.numpy(force=True) for side in (first_BQ, second_BQ))
    correlations = [rank_correlation(*of_query) for of_query in zip(*sides, strict=True)]
    known = [correlation for correlation in correlations if not math.isnan(correlation)]
    return sum(known) / len(known) if known else math.nan
