"""Queries by what a person types: an id, a name, or words of the prompt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from ftrace.arguments import checked
from ftrace.shown_text import counted, shortened
from ftrace.views.sources import Row, Source, id_of

_NEAREST = 3
_LONGEST = 80  # characters of a name in an error message


def all_queries(sources: Sequence[Source]) -> list[int]:
    """List the queries that any source knows: in the order of the first source, then of the others."""
    return list(dict.fromkeys(query for source in sources for query in source.query_ids))


@checked
def find_query(sources: Sequence[Source], given: str) -> int:
    """Find a query by its id or its name.

    Args:
        sources: The sources of scores.
        given: What was typed.

    Raises:
        ValueError: If no source knows the query; the message names the nearest ones.
    """
    queries = all_queries(sources)
    if id_of(given) in queries:
        return id_of(given)
    names = _names(sources, queries)
    if given in names:
        return names[given]
    raise ValueError(
        f"query: no query {shortened(given, _LONGEST)!r} among {len(queries):,}; {_nearest(given, queries, names)}"
    )


@checked
def search_queries(sources: Sequence[Source], words: Sequence[str]) -> list[int]:
    """Find the queries whose prompt or answers contain all of some words, whatever their case.

    Args:
        sources: The sources of scores.
        words: Words, or parts of words; one with spaces is looked for as it is.

    Raises:
        ValueError: If no text of a query is known, or no query has all of the words.
    """
    queries = all_queries(sources)
    rows = dict(zip(queries, query_rows(sources, queries), strict=True))
    if not any(rows.values()):
        raise ValueError("search: the texts of the queries aren't known. Join them with --texts FILE")
    wanted = [word.casefold() for word in words]
    searchable = {query: _searchable(row) for query, row in rows.items()}
    hits = [query for query in queries if all(word in searchable[query] for word in wanted)]
    if not hits:
        counts = [
            f"{shortened(word, _LONGEST)!r} is in {_count(word.casefold(), searchable.values())}" for word in words
        ]
        raise ValueError(
            f"search: none of {counted(len(queries), 'query', 'queries')} has {_all_of(words)}: {', '.join(counts)}"
        )
    return hits


def query_rows(sources: Sequence[Source], query_ids: Sequence[int]) -> list[Row]:
    """Return the texts of queries, each from the first source that has them; {} if none has."""
    rows: list[Row] = [{}] * len(query_ids)
    for source in sources:
        found = source.query_rows(query_ids)
        rows = [row or of_source or {} for row, of_source in zip(rows, found, strict=True)]
    return rows


def _names(sources: Sequence[Source], queries: Sequence[int]) -> dict[str, int]:
    names: dict[str, int] = {}
    for query, row in zip(queries, query_rows(sources, queries), strict=True):
        name = next(filter(None, (source.query_name(query) for source in sources)), None) or row.get("name")
        if name is not None:
            names.setdefault(str(name), query)
    return names


def _nearest(given: str, queries: Sequence[int], names: dict[str, int]) -> str:
    near = difflib.get_close_matches(given, names, _NEAREST, cutoff=0.3)
    if not near and _is_number(given):
        near = [str(query) for query in sorted(queries, key=lambda query: abs(query - int(given)))[:_NEAREST]]
    if near:
        return f"the nearest: {', '.join(shortened(name, _LONGEST) for name in near)}"
    first = {query: name for name, query in names.items()}
    called = [shortened(first.get(query, str(query)), _LONGEST) for query in queries[:_NEAREST]]
    return f"the first: {', '.join(called) or 'none'}"


def _is_number(given: str) -> bool:
    return given.removeprefix("-").isdecimal()


def _searchable(row: Row) -> str:
    answers = row.get("answers") or ()
    return "\n".join(
        str(text) for text in (row.get("text"), row.get("answer"), *answers) if text is not None
    ).casefold()


def _count(word: str, texts: Iterable[str]) -> str:
    count = sum(word in text for text in texts)
    return f"{count:,}" if count else "none"


def _all_of(words: Sequence[str]) -> str:
    return "that word" if len(words) == 1 else "all of these words"
