"""Views of queries, made of sources of scores that are joined by the ids of examples."""

from __future__ import annotations

from collections.abc import Sequence

from ftrace.arguments import Count, Positive, checked
from ftrace.views.duplicates import fold_duplicates
from ftrace.views.joining import (
    GroundTruth,
    example_rows,
    name_of,
    other_answers,
    query_row,
    query_words,
    said_of,
    text_of,
)
from ftrace.views.query_view import ColumnView, ExampleView, ListView, QueryLine, QueryView, Said
from ftrace.views.ranking import Place, Ranking, overlap
from ftrace.views.sources import Row, Source
from ftrace.views.words import SampledWords, shared_spans


@checked
def make_query_view(
    sources: Sequence[Source],
    query_id: int,
    k: Positive = 10,
    opponents: Count = 3,
    said: Said | None = None,
    *,
    by_first: bool = False,
) -> QueryView:
    """Make the view of a query.

    Args:
        sources: Sources of scores, one at least. They may know different queries and examples, in any order.
        query_id: The query, which one of them knows.
        k: How many proponents to take of each source, near-duplicates included.
        opponents: How many opponents likewise, of those with a negative score; 0: none are shown.
        said: What the model answered; default: what the texts say.
        by_first: Whether to list only the strongest of the first source, with what the others say of them beside.
    """
    row = query_row(sources, query_id)
    rankings = [source.ranking(query_id) for source in sources]
    negative = [source.ranking(query_id, largest=False) for source in sources]
    columns = tuple(map(_column, sources, rankings, negative))
    words = _telling_words(sources, row)
    of_others = 0 if by_first else 1  # how many of theirs are listed, for each of the first's
    counts = [1, *[of_others] * (len(sources) - 1)]
    below = [
        _with_opponents(ranking) if count else rankings[place]
        for place, (ranking, count) in enumerate(zip(negative, counts, strict=True))
    ]
    return QueryView(
        query_id,
        name_of(query_id, row, (source.query_name(query_id) for source in sources)),
        text_of(row, "text"),
        text_of(row, "answer"),
        other_answers(row),
        said or said_of(row),
        next(filter(None, (source.history(query_id) for source in sources)), None),
        columns,
        k,
        _list(sources, rankings, [k * count for count in counts], query_id, row, words),
        _list(sources, below, [opponents * count for count in counts], query_id, row, words) if opponents else None,
        by_first,
    )


def make_query_line(sources: Sequence[Source], query_id: int, row: Row) -> QueryLine:
    """Make a query's line in a list of queries: its strongest proponent is that of the first source that knows it.

    Args:
        sources: As in :func:`make_query_view`.
        query_id: The query.
        row: Its texts, as :func:`ftrace.views.joining.query_row` finds them.
    """
    ranking = next(filter(None, (source.ranking(query_id) for source in sources)), None)
    strongest = None
    if ranking is not None and ranking.count_of_sign():
        rankings: list[Ranking | None] = [ranking]
        strongest = _list(sources, rankings, [1], query_id, row, set()).examples[0]
    return QueryLine(
        query_id,
        name_of(query_id, row, (source.query_name(query_id) for source in sources)),
        text_of(row, "text"),
        text_of(row, "answer"),
        next(filter(None, (source.history(query_id) for source in sources)), None),
        strongest,
    )


def _list(
    sources: Sequence[Source],
    rankings: Sequence[Ranking | None],
    counts: Sequence[int],
    query_id: int,
    row: Row,
    words: set[str],
) -> ListView:
    """List the strongest examples of all sources, by their best rank, with near-duplicates folded."""
    tops = [
        [] if ranking is None or not count else ranking.top(count)
        for ranking, count in zip(rankings, counts, strict=True)
    ]
    ids = list(dict.fromkeys(example for top in tops for example in top))
    places = {example: [_place(ranking, example) for ranking in rankings] for example in ids}
    order = {example: rank for top in reversed(tops) for rank, example in enumerate(top)}
    best: dict[int, int] = {}
    for top in tops:
        best |= {example: min(place, best.get(example, place)) for place, example in enumerate(top)}
    ids.sort(key=lambda example: (best[example], order[example]))
    rows = example_rows(sources, ids)
    truth = GroundTruth(sources, query_id, row)
    folded = fold_duplicates([text_of(rows[example], "text") for example in ids])
    examples = []
    for group in folded:
        members = [ids[place] for place in group]
        of_row = rows[members[0]]
        text = text_of(of_row, "text")
        examples.append(
            ExampleView(
                members[0],
                name_of(members[0], of_row, (source.example_name(members[0]) for source in sources)),
                text,
                text_of(of_row, "answer"),
                truth.states_fact(members[0], of_row),
                shared_spans(text, words) if text else (),
                tuple(_best([places[member][column] for member in members]) for column in range(len(rankings))),
                tuple(members[1:]),
            )
        )
    pairs = list(zip(tops, rankings, strict=True))
    overlaps = [overlap(tops[0], top) if tops[0] and top else None for top in tops[1:]]
    return ListView(
        tuple(examples), tuple(map(len, tops)), tuple(_same_as_last(*pair) for pair in pairs), tuple(overlaps)
    )


def _column(source: Source, ranking: Ranking | None, negative: Ranking | None) -> ColumnView:
    doubts = tuple(source.doubts())
    if ranking is None or negative is None:
        return ColumnView(source.name, source.kind, doubts, knows_query=False)
    if not source.is_complete:
        return ColumnView(source.name, source.kind, doubts)
    counts = (len(ranking), ranking.count_of_sign(), negative.count_of_sign())
    return ColumnView(source.name, source.kind, doubts, True, *counts)


def _place(ranking: Ranking | None, example_id: int) -> Place | None:
    return None if ranking is None else ranking.place(example_id)


def _best(places: Sequence[Place | None]) -> Place | None:
    return min((place for place in places if place is not None), key=lambda place: place.rank, default=None)


def _with_opponents(ranking: Ranking | None) -> Ranking | None:
    """Leave only opponents in a ranking: an example that doesn't raise the loss is none."""
    if ranking is None:
        return None
    negative = ranking.scores < 0
    return Ranking(ranking.ids[negative], ranking.scores[negative], largest=False, strongest=ranking.strongest)


def _same_as_last(top: Sequence[int], ranking: Ranking | None) -> int:
    """Count the examples that have the score of the last one listed, and are not listed for no other reason."""
    if ranking is None or not top:
        return 0
    last = ranking.place(top[-1])
    assert last is not None
    return last.rank + last.ties - len(top)


def _telling_words(sources: Sequence[Source], row: Row) -> set[str]:
    """Return the words of a query and its answers, without those that many examples have."""
    words = query_words(row)
    sample = next(filter(None, (source.sample_texts() for source in sources)), [])
    return words - SampledWords(sample).common(words)
