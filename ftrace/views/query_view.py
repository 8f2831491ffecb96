"""What is shown of a query: the model of the view, which says nothing of how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ftrace.views.marked_text import Span
from ftrace.views.ranking import Place
from ftrace.views.sources import History


@dataclass(frozen=True)
class Said:
    """What the model answered.

    Args:
        text: The answer; None if it came to no end.
        probability: Its probability; None if it isn't known.
        right: Whether it is an accepted answer; None if none is known.
        snapshot: The snapshot that was asked; "" if it isn't known.
    """

    text: str | None
    probability: float | None = None
    right: bool | None = None
    snapshot: str = ""


def title_of(name: str, kind: str) -> str:
    """Name a source of scores beside others: its name and the kind of scores; the name alone if they are the same."""
    return name if kind in ("", name) else f"{name} {kind}"


@dataclass(frozen=True)
class ColumnView:
    """One source of scores, beside others.

    Args:
        name: The source's name.
        kind: The kind of scores; "" if it has no name.
        doubts: Why the scores can't be trusted, a sentence each.
        knows_query: Whether it has scores for the query.
        candidates: Number of examples that are ranked; None if only the strongest are known.
        proponents: Number of examples with a positive score; None likewise.
        opponents: Number of examples with a negative score; None likewise.
    """

    name: str
    kind: str
    doubts: tuple[str, ...] = ()
    knows_query: bool = True
    candidates: int | None = None
    proponents: int | None = None
    opponents: int | None = None

    @property
    def title(self) -> str:
        """Name and kind; the name alone if they are the same."""
        return title_of(self.name, self.kind)


@dataclass(frozen=True)
class ExampleView:
    """A training example among the strongest of a query.

    Args:
        example_id: Its id.
        name: Its name; None if it is called by its id.
        text: Its text; None if it isn't known.
        answer: What it teaches; None if it isn't known.
        states_fact: Whether it states the query's fact; None if that isn't known.
        shared: Where the text has words of the query.
        places: What each source says of it, in the order of the columns; None where it isn't ranked. If near-duplicates
            are folded into it, the best place of any of them.
        duplicate_ids: Further examples among the strongest that are near-duplicates of it.
    """

    example_id: int
    name: str | None
    text: str | None
    answer: str | None
    states_fact: bool | None
    shared: tuple[Span, ...]
    places: tuple[Place | None, ...]
    duplicate_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ListView:
    """The strongest proponents of a query, or its strongest opponents, of all sources.

    Args:
        examples: The examples, by their best rank in any source; near-duplicates once.
        counts: How many were asked of each source, after which its list ends.
        same_as_last: Of each source, how many more examples have the score of the last that is listed.
        overlaps: Of each source after the first, how many of its strongest are among those of the first; None where one
            of them has none.
    """

    examples: tuple[ExampleView, ...]
    counts: tuple[int, ...] = ()
    same_as_last: tuple[int, ...] = ()
    overlaps: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class QueryView:
    """A query with its strongest examples.

    Args:
        query_id: Its id.
        name: Its name; None if it is called by its id.
        prompt: What it asks; None if its text isn't known.
        answer: The right answer; None if it isn't known.
        accepted: Other accepted answers.
        said: What the model answered; None if nobody asked.
        history: What its loss and its answers did; None if nobody kept a ledger or asked.
        columns: The sources of scores.
        k: How many proponents were asked for.
        proponents: The strongest proponents.
        opponents: The strongest opponents; None if they weren't asked for.
        by_first: Whether only the strongest of the first source are listed.
    """

    query_id: int
    name: str | None
    prompt: str | None
    answer: str | None
    accepted: tuple[str, ...]
    said: Said | None
    history: History | None
    columns: tuple[ColumnView, ...]
    k: int
    proponents: ListView
    opponents: ListView | None = None
    by_first: bool = False

    @property
    def lacks_texts(self) -> bool:
        """Whether the query, or any of its examples, has no text."""
        lists: Sequence[ListView] = [self.proponents, *([self.opponents] if self.opponents else [])]
        return self.prompt is None or any(example.text is None for of in lists for example in of.examples)


@dataclass(frozen=True)
class QueryLine:
    """A query in a list of queries.

    Args:
        query_id: Its id.
        name: Its name; None if it is called by its id.
        prompt: What it asks; None if its text isn't known.
        answer: The right answer; None if it isn't known.
        history: What its loss and its answers did; None if nobody kept a ledger or asked.
        strongest: Its strongest proponent; None if no example has a positive score.
    """

    query_id: int
    name: str | None
    prompt: str | None
    answer: str | None
    history: History | None
    strongest: ExampleView | None
