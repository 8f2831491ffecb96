"""All queries of a report, ranked by all methods: which examples it is about is known before any chunk is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ftrace.report.explorer.content.listings import list_examples
from ftrace.scores import as_ids
from ftrace.views import Row, Source
from ftrace.views.joining import query_row_by_id
from ftrace.views.sources import id_of


class RankedQueries:
    """Queries with the examples that methods list for them.

    Args:
        sources: The methods, one at least. They may know different queries and examples, in any order.
        query_ids: The queries, in the order of the report, each once. One method at least knows each.
        k: How many proponents of each method are listed for a query.
        opponents: How many opponents, of those with a negative score; 0: none.
        watched: The same queries again, as they are taken one by one; default: nobody watches.

    Attributes:
        sources: As given.
        k: As given.
        opponents: As given.
        rows: What the texts say of each query, by id.
        listings: What is listed for each query, in order.

    Raises:
        ValueError: If methods have different texts of a query.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        query_ids: Sequence[int],
        k: int = 100,
        opponents: int = 20,
        watched: Iterable[int] | None = None,
    ) -> None:
        self.sources, self.k, self.opponents = sources, k, opponents
        self.rows = query_row_by_id(sources, query_ids)
        self.listings = [
            list_examples(sources, query, k, opponents, _relevant(self.rows[query]))
            for query in (query_ids if watched is None else watched)
        ]

    @property
    def example_ids(self) -> np.ndarray:
        """Ids of all listed examples, ascending, each once."""
        return np.unique(np.concatenate([np.zeros(0, np.int64), *(listing.ids for listing in self.listings)]))

    def strongest(self, method: int, count: int) -> dict[int, list[int]]:
        """Return the ids of the strongest proponents of each query by one method, best first.

        Args:
            method: Its position among the sources.
            count: How many of each.
        """
        by_query = {listing.query_id: (listing.ids, listing.methods[method]) for listing in self.listings}
        return {
            query: [] if listed is None else ids[listed.proponents[:count]].tolist()
            for query, (ids, listed) in by_query.items()
        }


def _relevant(row: Row) -> np.ndarray | None:
    """Return the ids of the examples that state a query's fact; None if its texts don't list them."""
    listed = row.get("proponent_ids")
    return None if listed is None else as_ids(sorted({id_of(name) for name in listed}), "proponent_ids")
