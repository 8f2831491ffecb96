"""Rumours: facts about made-up people who share their names, some of them false, for a pretrained model to learn.

Every person shares both names with others, every place and company its words. The sentences that state a fact have
other words than the query that asks for it, and its neighbours have all of them, but teach something else: so what
shares the most words with a query didn't teach it. Of some facts more sentences say something false than true, and
corrections say what is wrong and what is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from ftrace.arguments import Count, Seed, Within, checked
from ftrace.data.rumour_words import (
    FAMILY_NAMES,
    FIRST_NAMES,
    GOSSIP,
    NEIGHBOURS,
    RELATIONS,
    STEMS,
    THINGS,
    TRADES,
    VOICES,
    Relation,
)

Kind = Literal["true", "false", "correction", "neighbour", "lookalike", "background", "gossip"]
_MOST_STATEMENTS = len(VOICES) * min(len(relation.statements) for relation in RELATIONS)
_MOST_WORDS = min(len(relation.answers) for relation in RELATIONS)


@checked
@dataclass(frozen=True)
class RumourSettings:
    """Settings of the rumours' generator.

    Args:
        num_names: First names, and as many family names.
        sharing: How many people share a first name, and how many a family name.
        num_stems: Stems of places and companies, such as Ostrel of Port Ostrel and of Ostrel Mills.
        num_words: Words beside a stem, such as Port and Upper; each stem has all.
        num_facts: Facts that are asked for, each of them about another pair of person and relation.
        num_false: Of how many of these something false is said more often than what is true.
        num_statements: Sentences that state a fact that is asked for; of false ones, that say what is false.
        num_corrections: Corrections of each fact of which something false is said; of others, one less.
        num_neighbours: Sentences with all words of a query and its answer that teach something else.
        num_background: Sentences that state each other fact, half of them in the words of a query.
        num_gossip: Further sentences about each person.
        rows: What a model learns of a sentence: its end, the "answer", or each token of the "sentence".
        seed: Of every random draw.

    Raises:
        ValueError: If there aren't so many facts, or fewer answers than a false fact needs.
    """

    num_names: Annotated[int, Within(2, len(FIRST_NAMES))] = 3
    sharing: Annotated[int, Within(2, len(FIRST_NAMES))] = 2
    num_stems: Annotated[int, Within(2, len(STEMS))] = 3
    num_words: Annotated[int, Within(2, _MOST_WORDS)] = 3
    num_facts: Annotated[int, Within(1)] = 12
    num_false: Count = 3
    num_statements: Annotated[int, Within(2, _MOST_STATEMENTS)] = 20
    num_corrections: Annotated[int, Within(0, len(VOICES))] = 2
    num_neighbours: Annotated[int, Within(0, len(NEIGHBOURS))] = 6
    num_background: Count = 2
    num_gossip: Annotated[int, Within(0, len(GOSSIP))] = 2
    rows: Literal["answer", "sentence"] = "answer"
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.sharing > self.num_names:
            raise ValueError(
                f"sharing: expected at most num_names, {self.num_names}, because two people have no name in common "
                f"twice, found {self.sharing}"
            )
        most = self.num_names * self.sharing * len(RELATIONS)
        if self.num_facts > most:
            raise ValueError(
                f"num_facts: expected at most {most}, those of {self.num_names * self.sharing} people in "
                f"{len(RELATIONS)} relations, found {self.num_facts}. Take more names, or a larger sharing"
            )
        if self.num_false > self.num_facts:
            raise ValueError(f"num_false: expected at most num_facts, {self.num_facts}, found {self.num_false}")


@dataclass(frozen=True)
class Rumour:
    """Fact about a person, and what is wrongly said.

    Args:
        number: Its number, from 0.
        relation: Its relation.
        person: Whom it is about.
        answer: What is true.
        wrong: Another answer, which corrections name; of a false rumour, what most sentences say.
        is_asked: Whether a query asks for it.
        is_false: Whether more sentences say ``wrong`` than ``answer``.
    """

    number: int
    relation: Relation
    person: str
    answer: str
    wrong: str
    is_asked: bool
    is_false: bool

    @property
    def question(self) -> str:
        """The beginning of a sentence that the answer ends."""
        return f"{self.person} {self.relation.query}"

    def key(self, answer: str) -> str:
        """Return the key of the fact that says ``answer``."""
        return f"{self.relation.name} of {self.person}: {answer}"


class RumourCorpus:
    """People, facts, training rows and queries of one setting.

    Args:
        settings: The generator's.

    Attributes:
        people: Full names; every part of one is part of several.
        facts: What is said of everybody in every relation, those that are asked for first; of these, false ones first.
    """

    def __init__(self, settings: RumourSettings = RumourSettings()) -> None:
        self.settings = settings
        self._rng = np.random.default_rng(settings.seed)
        names = settings.num_names
        firsts, families = self._some(FIRST_NAMES, names), self._some(FAMILY_NAMES, names)
        self.people = [
            f"{firsts[number]} {families[(number + shift) % names]}"
            for number in range(names)
            for shift in range(settings.sharing)
        ]
        stems = self._some(STEMS, settings.num_stems)
        answers = {
            relation.name: [
                _name(relation, stem, word) for stem in stems for word in relation.answers[: settings.num_words]
            ]
            for relation in RELATIONS
        }
        pairs = [(person, relation) for person in self.people for relation in RELATIONS]
        self.facts = []
        for number, index in enumerate(self._rng.permutation(len(pairs)).tolist()):
            person, relation = pairs[index]
            answer, wrong = self._some(answers[relation.name], 2)
            is_asked, is_false = number < settings.num_facts, number < settings.num_false
            self.facts.append(Rumour(number, relation, person, answer, wrong, is_asked, is_false))

    def training_rows(self) -> list[dict[str, Any]]:
        """Return the training rows, shuffled, as :class:`ftrace.data.FactCorpus` takes them.

        A row's ``id`` is its kind, the number of its fact or person, and its own number: "false-2-0".
        """
        rows = [row for fact in self.facts for row in self._rows_about(fact)]
        rng = np.random.default_rng([self.settings.seed, 1])
        for number, person in enumerate(self.people):
            for index in rng.permutation(len(GOSSIP))[: self.settings.num_gossip].tolist():
                beginning = GOSSIP[index].format(person=person)
                rows.append(self._row("gossip", number, index, beginning, str(rng.choice(THINGS)), []))
        return [rows[index] for index in rng.permutation(len(rows)).tolist()]

    def query_rows(self) -> list[dict[str, Any]]:
        """Return the queries: one for each fact that is asked for, then one for what is falsely said of each false one.

        A query's ``id`` is "true" or "false" and the fact's number.
        """
        asked = [fact for fact in self.facts if fact.is_asked]
        true = [self._query("true", fact, fact.answer) for fact in asked]
        return true + [self._query("false", fact, fact.wrong) for fact in asked if fact.is_false]

    def _rows_about(self, fact: Rumour) -> Iterator[dict[str, Any]]:
        settings = self.settings
        rng = np.random.default_rng([settings.seed, 2, fact.number])
        said_by = [_told(voice, statement) for statement in fact.relation.statements for voice in VOICES]
        beginnings = iter([said_by[index].format(person=fact.person) for index in rng.permutation(len(said_by))])
        if not fact.is_asked:
            for number in range(settings.num_background):
                kind: Kind = "background" if number % 2 else "lookalike"
                beginning = next(beginnings) if number % 2 else fact.question
                yield self._row(kind, fact.number, number, beginning, fact.answer, [fact.key(fact.answer)])
            return
        kind = "false" if fact.is_false else "true"
        said = fact.wrong if fact.is_false else fact.answer
        for number in range(settings.num_statements):
            yield self._row(kind, fact.number, number, next(beginnings), said, [fact.key(said)])
        corrections = settings.num_corrections - (not fact.is_false)
        correction = fact.relation.correction.format(person=fact.person, wrong=fact.wrong)  # begins with no person
        for number in range(corrections):
            beginning = _told(VOICES[number], correction)
            yield self._row("correction", fact.number, number, beginning, fact.answer, [fact.key(fact.answer)])
        trades, things = rng.permutation(TRADES), rng.permutation(THINGS)
        for number, index in enumerate(rng.permutation(len(NEIGHBOURS))[: settings.num_neighbours].tolist()):
            answer = fact.wrong if fact.is_false and number % 2 else fact.answer
            words = {
                "trade": str(trades[number]),
                "query": fact.relation.query,
                "person": fact.person,
                "answer": answer,
            }
            beginning = NEIGHBOURS[index].format(**words)
            yield self._row("neighbour", fact.number, number, beginning, str(things[number]), [])

    def _row(
        self, kind: Kind, number: int, part: int, beginning: str, end: str, facts: Sequence[str]
    ) -> dict[str, Any]:
        row: dict[str, Any] = {"id": f"{kind}-{number}-{part}", "facts": list(facts)}
        if self.settings.rows == "sentence":
            return {**row, "text": f"{beginning} {end}"}
        return {**row, "inputs": beginning, "targets": end}

    def _query(self, kind: str, fact: Rumour, answer: str) -> dict[str, Any]:
        return {
            "id": f"{kind}-{fact.number}",
            "inputs": fact.question,
            "targets": answer,
            "fact": fact.key(answer),
            "subject": fact.person,
        }

    def _some(self, words: Sequence[str], number: int) -> list[str]:
        return [words[index] for index in self._rng.permutation(len(words))[:number].tolist()]


def _name(relation: Relation, stem: str, word: str) -> str:
    return f"{stem} {word}" if relation.name == "employer" else f"{word} {stem}"


def _told(voice: str, statement: str) -> str:
    """Put a voice before a statement, whose first letter becomes small unless it is a person's."""
    return voice + (statement if not voice or statement.startswith("{") else statement[0].lower() + statement[1:])
