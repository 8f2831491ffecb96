"""The queries that a report is of."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ftrace.views import Source, all_queries, find_query

MOST = 2_000


def choose_queries(sources: Sequence[Source], given: Sequence[str] | None) -> tuple[list[int], list[str]]:
    """Choose the queries of a report.

    Args:
        sources: Sources of scores.
        given: Ids and names, where "#17" is an id; or a single number: how many to draw evenly. Default: all, up to
            :data:`MOST`.

    Returns:
        Their ids, in the order of the sources, and sentences on what was left out.

    Raises:
        ValueError: If there is no query, or none of this id or name; or more are asked for than a report may have.
    """
    known = all_queries(sources)
    if not known:
        raise ValueError("expected scores for at least one query, found none")
    if given is not None and not _is_number_alone(given):
        named = {
            find_query(sources, name.removeprefix("#") if re.fullmatch(r"#-?\d+", name) else name) for name in given
        }
        if len(named) > MOST:
            raise ValueError(f"queries: expected up to {MOST:,}, found {len(named):,}. Name fewer")
        left_out = [] if len(named) == len(known) else [f"{len(named):,} of {len(known):,} queries were chosen."]
        return [query for query in known if query in named], left_out
    count = MOST if given is None else int(given[0])
    if not 1 <= count <= MOST:
        raise ValueError(f"queries: expected a number from 1 to {MOST:,}, or ids and names, found {count:,}")
    if count >= len(known):
        return known, []
    drawn = [known[place * len(known) // count] for place in range(count)]
    return drawn, [f"{count:,} of {len(known):,} queries are here, drawn evenly in order; --queries names others."]


def _is_number_alone(given: Sequence[str]) -> bool:
    return len(given) == 1 and given[0].isdecimal()
