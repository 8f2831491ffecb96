"""Views of queries, made of sources of scores that are joined by the ids of examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ftrace.scores import stable_id
from ftrace.views.duplicates import fold_duplicates
from ftrace.views.query_view import ColumnView, ExampleView, ListView, QueryLine, QueryView, Said
from ftrace.views.ranking import Place, Ranking, overlap
from ftrace.views.sources import Row, Source, id_of
from ftrace.views.words import SENTINEL, common_words, shared_spans, words_in


def make_query_view(
    sources: Sequence[Source],
    query_id: int,
    k: int = 10,
    opponents: int = 3,
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
        _name(query_id, row, (source.query_name(query_id) for source in sources)),
        _text(row, "text"),
        _text(row, "answer"),
        _other_answers(row),
        said or _said(row),
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
        row: Its texts, as :func:`query_row` finds them.
    """
    ranking = next(filter(None, (source.ranking(query_id) for source in sources)), None)
    strongest = None
    if ranking is not None and ranking.count_of_sign():
        rankings: list[Ranking | None] = [ranking]
        strongest = _list(sources, rankings, [1], query_id, row, set()).examples[0]
    return QueryLine(
        query_id,
        _name(query_id, row, (source.query_name(query_id) for source in sources)),
        _text(row, "text"),
        _text(row, "answer"),
        next(filter(None, (source.history(query_id) for source in sources)), None),
        strongest,
    )


def query_row(sources: Sequence[Source], query_id: int) -> Row:
    """Return a query's texts from the first source that has them; {} if none has.

    Raises:
        ValueError: If two sources have different texts of it: they are of different data, whose ids mean nothing to
            each other.
    """
    rows = [(source, row) for source in sources if (row := source.query_rows([query_id])[0]) is not None]
    for source, row in rows[1:]:
        first, of_first = rows[0]
        if (text := _text(of_first, "text")) and _text(row, "text") not in (None, "", text):
            raise ValueError(
                f"expected scores of the same data, found that query {query_id} is {text!r:.80} in {first.name} and "
                f"{_text(row, 'text')!r:.80} in {source.name}. Show them one by one"
            )
    return rows[0][1] if rows else {}


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
    rows = _example_rows(sources, ids)
    folded = fold_duplicates([_text(rows[example], "text") for example in ids])
    examples = []
    for group in folded:
        members = [ids[place] for place in group]
        of_row = rows[members[0]]
        text = _text(of_row, "text")
        examples.append(
            ExampleView(
                members[0],
                _name(members[0], of_row, (source.example_name(members[0]) for source in sources)),
                text,
                _text(of_row, "answer"),
                _states_fact(sources, query_id, row, members[0], of_row),
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


def _example_rows(sources: Sequence[Source], ids: Sequence[int]) -> dict[int, Row]:
    """Return the texts of examples, each from the first source that has them."""
    rows: dict[int, Row] = {}
    for source in sources:
        lacking = [example for example in ids if example not in rows]
        rows |= {
            example: row for example, row in zip(lacking, source.example_rows(lacking), strict=True) if row is not None
        }
    return {example: rows.get(example, {}) for example in ids}


def _states_fact(sources: Sequence[Source], query_id: int, row: Row, example_id: int, example: Row) -> bool | None:
    """Tell whether an example states the query's fact: by labels, else by ids, else by the fact's key."""
    label = next((says for s in sources if (says := s.states_fact(query_id, example_id)) is not None), None)
    if label is not None:
        return label
    if row.get("proponent_ids") is not None:
        return example_id in {id_of(proponent) for proponent in row["proponent_ids"]}
    if row.get("fact") is not None and example.get("facts") is not None:
        return row["fact"] in example["facts"]
    return None


def _telling_words(sources: Sequence[Source], row: Row) -> set[str]:
    """Return the words of a query and its answers, without those that many examples have."""
    texts = [_text(row, "text") or "", _text(row, "answer") or "", *_other_answers(row)]
    words = {word.key for text in texts for word in words_in(text)}
    sample = next(filter(None, (source.sample_texts() for source in sources)), [])
    return words - common_words(words, sample)


def _name(known_id: int, row: Row, names: Iterable[str | None]) -> str | None:
    """Return the name that an id was made from. A row may have a name beside a number of its own: that is its id."""
    name = next(filter(None, names), None)
    if name is None and row.get("name") is not None and stable_id(str(row["name"])) == known_id:
        name = str(row["name"])
    return name


def _text(row: Row, name: str) -> str | None:
    value: Any = row.get(name)
    return None if value is None else str(value)


def _other_answers(row: Row) -> tuple[str, ...]:
    return tuple(str(answer) for answer in row.get("answers") or () if str(answer) != _text(row, "answer"))


def _said(row: Row) -> Said | None:
    """Return what the texts say that the model said, and whether it is right."""
    said = _text(row, "said")
    if said is None:
        return None
    accepted = {_bare(answer) for answer in (_text(row, "answer"), *_other_answers(row)) if answer is not None}
    return Said(said, right=_bare(said) in accepted if accepted else None)


def _bare(answer: str) -> str:
    """Return an answer as it is compared: without masks, spaces, case and a final dot."""
    return "".join(SENTINEL.sub(" ", answer).split()).casefold().removesuffix(".")
