"""The scores of a query's strongest examples by epoch, by layer, or before and after it was learned."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ftrace.report.explorer.content.listings import MethodListing
from ftrace.report.explorer.format import Parts
from ftrace.report.explorer.short_numbers import rounded
from ftrace.scores import Sum
from ftrace.scores.ids import ascending_order, places_of
from ftrace.views import StoreSource

PROPONENTS, OPPONENTS = 20, 10  # which are broken down


class Breakdown:
    """The parts of one method's scores, read where they are needed.

    Args:
        source: The method.
        method: Its position among the methods.
    """

    def __init__(self, source: StoreSource, method: int) -> None:
        self._store, self._kind, self._method = source.store, source.kind, method

    def of(self, query_id: int, ids: np.ndarray, listing: MethodListing) -> Iterator[Parts]:
        """Return the parts of the strongest of a query's examples, axis by axis.

        Args:
            query_id: The query, which the method knows.
            ids: Ids of the query's examples.
            listing: What the method lists.
        """
        opponents = np.zeros(0, np.int64) if listing.opponents is None else listing.opponents[:OPPONENTS]
        chosen = np.array(list(dict.fromkeys([*listing.proponents[:PROPONENTS].tolist(), *opponents.tolist()])), int)
        if not len(chosen):
            return
        rows = places_of(ids[chosen], self._store.example_ids, ascending_order(self._store.example_ids))
        column = self._store.place_of_query(query_id)
        for axis, parts in self._store.breakdown_of(self._kind).items():
            values = [self._store.column(column, Sum(self._kind, axis, part), rows) for part in parts]
            by_example = [list(of_example) for of_example in zip(*map(rounded, values), strict=True)]
            yield {"method": self._method, "axis": axis, "examples": chosen.tolist(), "values": by_example}
