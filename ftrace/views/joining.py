"""What several sources of scores together know of a query and of its examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ftrace.scores import stable_id
from ftrace.views.query_view import Said
from ftrace.views.sources import Row, Source, id_of
from ftrace.views.words import SENTINEL, words_in


def query_row(sources: Sequence[Source], query_id: int) -> Row:
    """Return a query's texts, as :func:`query_row_by_id` finds them."""
    return query_row_by_id(sources, [query_id])[query_id]


def query_row_by_id(sources: Sequence[Source], query_ids: Sequence[int]) -> dict[int, Row]:
    """Return the texts of queries by id, each from the first source that has them; {} of one that none has.

    Raises:
        ValueError: If two sources have different texts of a query: they are of different data, whose ids mean nothing
            to each other.
    """
    rows: dict[int, Row] = {}
    first: dict[int, Source] = {}
    for source in sources:
        for query_id, row in zip(query_ids, source.query_rows(query_ids), strict=True):
            if row is None:
                continue
            known = rows.setdefault(query_id, row)
            text = text_of(known, "text")
            if text and text_of(row, "text") not in (None, "", text):
                raise ValueError(
                    f"expected scores of the same data, found that query {query_id} is {text!r:.80} in "
                    f"{first[query_id].name} and {text_of(row, 'text')!r:.80} in {source.name}. Show them one by one"
                )
            first.setdefault(query_id, source)
    return {query_id: rows.get(query_id, {}) for query_id in query_ids}


def example_rows(sources: Sequence[Source], ids: Sequence[int]) -> dict[int, Row]:
    """Return the texts of examples by id, each from the first source that has them; {} of one that none has."""
    rows: dict[int, Row] = {}
    for source in sources:
        lacking = [example for example in ids if example not in rows]
        rows |= {
            example: row for example, row in zip(lacking, source.example_rows(lacking), strict=True) if row is not None
        }
    return {example: rows.get(example, {}) for example in ids}


class GroundTruth:
    """Which examples state a query's fact: by labels, else by ids, else by the fact's key.

    Args:
        sources: Sources of scores, whose labels go before what the texts say.
        query_id: The query.
        row: Its texts.

    Attributes:
        proponents: Ids of the examples that state the fact, as the query's texts list them; None if they don't.
        fact: The fact's key; None if it isn't known.
    """

    def __init__(self, sources: Sequence[Source], query_id: int, row: Row) -> None:
        self._sources, self._query_id = sources, query_id
        listed = row.get("proponent_ids")
        self.proponents = None if listed is None else frozenset(map(id_of, listed))
        self.fact = text_of(row, "fact")

    def states_fact(self, example_id: int, row: Row) -> bool | None:
        """Tell whether an example states the fact; None if that isn't known.

        Args:
            example_id: The example.
            row: Its texts.
        """
        labels = (source.states_fact(self._query_id, example_id) for source in self._sources)
        label = next((label for label in labels if label is not None), None)
        if label is not None:
            return label
        if self.proponents is not None:
            return example_id in self.proponents
        if self.fact is not None and row.get("facts") is not None:
            return self.fact in map(str, row["facts"])
        return None


def query_words(row: Row) -> set[str]:
    """Return the words of a query and its answers, in the form in which words are compared."""
    texts = [text_of(row, "text") or "", text_of(row, "answer") or "", *other_answers(row)]
    return {word.key for text in texts for word in words_in(text)}


def name_of(known_id: int, row: Row, names: Iterable[str | None]) -> str | None:
    """Return the name that an id was made from. A row may have a name beside a number of its own: that is its id.

    Args:
        known_id: The id of an example or a query.
        row: Its texts.
        names: What the sources call it.
    """
    name = next(filter(None, names), None)
    if name is None and row.get("name") is not None and stable_id(str(row["name"])) == known_id:
        name = str(row["name"])
    return name


def text_of(row: Row, name: str) -> str | None:
    """Return one field of a row as text; None if it has none."""
    value: Any = row.get(name)
    return None if value is None else str(value)


def other_answers(row: Row) -> tuple[str, ...]:
    """Return the accepted answers of a query beside the one that it spells."""
    return tuple(str(answer) for answer in row.get("answers") or () if str(answer) != text_of(row, "answer"))


def said_of(row: Row) -> Said | None:
    """Return what the texts of a query say that the model said, and whether it is right; None if they don't."""
    said = text_of(row, "said")
    if said is None:
        return None
    accepted = {_bare(answer) for answer in (text_of(row, "answer"), *other_answers(row)) if answer is not None}
    return Said(said, right=_bare(said) in accepted if accepted else None)


def _bare(answer: str) -> str:
    """Return an answer as it is compared: without masks, spaces, case and a final dot."""
    return "".join(SENTINEL.sub(" ", answer).split()).casefold().removesuffix(".")
