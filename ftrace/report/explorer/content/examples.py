"""The pages of examples: which queries each of them helped and hurt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from ftrace.report.explorer.content.corpus_texts import CorpusTexts
from ftrace.report.explorer.content.listings import Listing
from ftrace.report.explorer.content.score_rows import score_rows
from ftrace.report.explorer.format import ExamplePage, ExampleTotals
from ftrace.report.explorer.short_numbers import rounded
from ftrace.views import Source

QUERIES_OF_EACH_SIGN = 10
EXAMPLES_OF_A_CHUNK = 64
_AT_ONCE = 32 * EXAMPLES_OF_A_CHUNK


class Examples:
    """Pages of all examples that are listed for any query.

    Args:
        sources: The methods.
        listings: What they list, query by query, in the order of the report's list of queries.
        ids: Ids of the listed examples, ascending, each once.
        texts: Their texts.
    """

    def __init__(
        self, sources: Sequence[Source], listings: Sequence[Listing], ids: np.ndarray, texts: CorpusTexts
    ) -> None:
        self._sources, self._ids, self._texts = sources, ids, texts
        self._query_ids = [listing.query_id for listing in listings]
        self._listed = {
            method: _by_example(listings, method) for method, source in enumerate(sources) if not source.is_complete
        }

    @property
    def first_ids(self) -> list[str]:
        """The first id of each chunk."""
        return [str(example) for example in self._ids[::EXAMPLES_OF_A_CHUNK].tolist()]

    def chunks(self) -> Iterator[list[ExamplePage]]:
        """Make all pages, chunk by chunk."""
        for start in range(0, len(self._ids), _AT_ONCE):
            pages = self._pages(self._ids[start : start + _AT_ONCE])
            while chunk := list(islice(pages, EXAMPLES_OF_A_CHUNK)):
                yield chunk

    def chunk(self, number: int) -> list[ExamplePage]:
        """Make the pages of one chunk."""
        start = number * EXAMPLES_OF_A_CHUNK
        return list(self._pages(self._ids[start : start + EXAMPLES_OF_A_CHUNK]))

    def _pages(self, ids: np.ndarray) -> Iterator[ExamplePage]:
        totals = [self._totals(method, ids) for method in range(len(self._sources))]
        for place, example_id in enumerate(ids.tolist()):
            example = self._texts[example_id]
            yield {
                "id": str(example_id),
                "name": example.name,
                "text": example.text.text,
                "cut": example.text.cut,
                "answer": example.answer,
                "methods": [of_method[place] for of_method in totals],
            }

    def _totals(self, method: int, ids: np.ndarray) -> list[ExampleTotals | None]:
        if method in self._listed:
            return [self._listed[method].get(example) for example in ids.tolist()]
        return totals_of(score_rows(self._sources[method], self._query_ids, ids))


def totals_of(scores: np.ndarray) -> list[ExampleTotals | None]:
    """Add up the scores of examples over queries.

    Args:
        scores: ``[n, Q]``; NaN where an example is not ranked.
    """
    is_ranked = ~np.isnan(scores).all(1)
    positive, negative = scores > 0, scores < 0
    columns = zip(
        is_ranked.tolist(),
        positive.sum(1).tolist(),
        negative.sum(1).tolist(),
        rounded(np.where(positive, scores, 0).sum(1, dtype=np.float64)),
        rounded(np.where(negative, scores, 0).sum(1, dtype=np.float64)),
        _strongest(np.where(positive, -scores, np.inf)),
        _strongest(np.where(negative, scores, np.inf)),
        strict=True,
    )
    return [
        {
            "helped": helped,
            "hurt": hurt,
            "sum_helped": sum_helped,
            "sum_hurt": sum_hurt,
            "most_helped": [(query, score and -score) for query, score in most_helped],
            "most_hurt": most_hurt,
        }
        if is_known
        else None
        for is_known, helped, hurt, sum_helped, sum_hurt, most_helped, most_hurt in columns
    ]


def _strongest(signed: np.ndarray) -> list[list[tuple[int, float | None]]]:
    """Find the smallest values of each row, equal ones in the order of columns.

    Args:
        signed: ``[n, Q]``; what doesn't count is infinite.

    Returns:
        For each row, columns and values.
    """
    count = min(QUERIES_OF_EACH_SIGN, signed.shape[1])
    if not count or not len(signed):
        return [[] for _ in signed]
    last = np.partition(signed, count - 1, axis=1)[:, count - 1 : count]
    rows, columns = np.nonzero((signed <= last) & np.isfinite(signed))
    values = signed[rows, columns]
    order = np.lexsort((columns, values, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    place_in_row = np.arange(len(rows)) - np.searchsorted(rows, rows)
    kept = place_in_row < count
    ends = np.cumsum(np.bincount(rows[kept], minlength=len(signed))).tolist()
    pairs = list(zip(columns[kept].tolist(), rounded(values[kept]), strict=True))
    return [pairs[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _by_example(listings: Sequence[Listing], method: int) -> dict[int, ExampleTotals]:
    """Collect, by example, the queries for which a method that knows only the strongest lists it."""
    helped: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
    hurt: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
    for position, listing in enumerate(listings):
        of_method = listing.methods[method]
        if of_method is None:
            continue
        for listed, into in ((of_method.proponents, helped), (of_method.opponents, hurt)):
            for place in [] if listed is None else listed.tolist():
                into[int(listing.ids[place])].append((position, float(of_method.places.scores[place])))
    return {
        example: {
            "helped": None,
            "hurt": None,
            "sum_helped": None,
            "sum_hurt": None,
            "most_helped": _first(helped.get(example, []), largest=True),
            "most_hurt": _first(hurt.get(example, []), largest=False),
        }
        for example in {**helped, **hurt}
    }


def _first(pairs: list[tuple[int, float]], *, largest: bool) -> list[tuple[int, float | None]]:
    pairs.sort(key=lambda pair: (-pair[1] if largest else pair[1], pair[0]))
    first = pairs[:QUERIES_OF_EACH_SIGN]
    return list(zip([query for query, _ in first], rounded([score for _, score in first]), strict=True))
