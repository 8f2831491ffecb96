"""Which pictures there are of a report, and of which queries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ftrace.report.explorer.format import Head, QueryChunk, QueryList
from ftrace.report.figures.by_part import draw_parts
from ftrace.report.figures.compared import draw_comparison
from ftrace.report.figures.one_query import draw_query
from ftrace.report.figures.run_figures import draw_evaluation, draw_ledger
from ftrace.report.figures.token_heat import draw_tokens
from ftrace.report.figures.where import draw_where
from ftrace.report.pictures import save_png_and_pdf
from ftrace.report.style import look

_OF_QUERY: dict[str, Callable[[Head, QueryChunk], Figure | None]] = {
    "": draw_query, "-methods": draw_comparison, "-parts": draw_parts, "-tokens": draw_tokens, "-layers": draw_where,
}  # fmt: skip
_OF_RUN: dict[str, Callable[[Head], Figure | None]] = {"run-evaluation": draw_evaluation, "run-ledger": draw_ledger}


def write_figures(folder: Path, head: Head, queries: Sequence[QueryChunk]) -> list[Path]:
    """Draw a report's views: the run, and some queries.

    A picture is left out if the report has nothing that it could show.

    Args:
        folder: Where they go, as ``query-ID.png``, ``query-ID-methods.png``, ``run-ledger.png``, ..., and ``.pdf``
            beside each. Files of the same names are overwritten.
        head: The report's head.
        queries: The queries to draw; :func:`choose_queries` finds some.

    Returns:
        The files that were written, a PNG and then its PDF.
    """
    written: list[Path] = []
    with look():
        for name, draw_run in _OF_RUN.items():
            written += _saved(draw_run(head), folder / name)
        for query in queries:
            for ending, draw in _OF_QUERY.items():
                written += _saved(draw(head, query), folder / f"query-{int(query['id'])}{ending}")
    return written


def _saved(figure: Figure | None, file: Path) -> list[Path]:
    return [] if figure is None else list(save_png_and_pdf(figure, file))


def choose_queries(queries: QueryList) -> list[int]:
    """Choose up to three queries that show what a report has to show: one as it should be, one in dispute, one failed.

    They are the query with the highest mean precision (without ground truth, the one whose loss fell the most), the one
    on which methods disagree most, and the one that was answered wrong, never right or forgotten, with the highest loss
    at last.

    Returns:
        Their positions in the list of queries, each once, in this order.
    """
    number = range(len(queries["ids"]))
    precisions = [_mean([of_method[place] for of_method in queries["precisions"]]) for place in number]
    falls = [_minus(queries["first_losses"][place], queries["last_losses"][place]) for place in number]
    failed = [
        queries["said_right"][place] is False or queries["states"][place] in ("never", "forgotten") for place in number
    ]
    wrong = [
        (queries["last_losses"][place] or 0.0) if failed[place] else None for place in number
    ]  # of those without a known loss, the first
    best = precisions if any(value is not None for value in precisions) else falls
    chosen = [_largest(best, falls), _largest(queries["disagreements"]), _largest(wrong)]
    found = list(dict.fromkeys(place for place in chosen if place is not None))
    return found or list(number[:1])


def _largest(values: Sequence[float | None], then: Sequence[float | None] | None = None) -> int | None:
    """Return the first position of the largest value, ties told apart by other values; None if none is known."""
    known = [place for place, value in enumerate(values) if value is not None]

    def order(place: int) -> tuple[float, float]:
        second = then[place] if then is not None else 0.0
        return values[place] or 0.0, -math.inf if second is None else second

    return max(known, key=order, default=None)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _minus(first: float | None, last: float | None) -> float | None:
    return None if first is None or last is None else first - last
