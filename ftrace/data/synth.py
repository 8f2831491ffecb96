"""FTRACE-SYNTH: facts about made-up entities, each stated in many surfaces.

Reproduces the facts and test facts of the published generator (Akyürek et al. 2022, arXiv 2205.11482) at seed 0, but
not its defects: two facts a row give rows, facts are joined by a space, entity 0 has a Roman form, and everything
that the published code leaves to the order of a set of strings is drawn from the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice, product
from pathlib import Path
from string import Formatter
from typing import Any, Literal

import numpy as np

MAX_EXPRESSIONS = 4
MAX_FACTS = 8

Fact = tuple[int, tuple[int, int]]


@dataclass(frozen=True)
class SynthSettings:
    """Flags of the FTRACE-SYNTH generator.

    Args:
        num_entities: Number of entities.
        num_relations: Number of relations.
        num_facts: Number of facts; each relation is one-to-one.
        num_test_utterances: Number of facts of which one sentence is held out; it gives two queries.
        num_entity_words: 1. The published generator reads this flag and never uses it.
        num_expressions_per_entity: Number of surfaces of an entity, 1 to 4.
        num_facts_per_utterance: Number of facts in a training row.
        entity_vocabulary: None. The published generator reads this flag and never uses it.
        relation_vocabulary: A file with one relation a line, paraphrases separated by " | ", slots {0} and {1};
            default: the vocabulary that ships with ftrace.
        seed: Seed of every random draw.
        separator: Text between the facts of a row.
        collisions: Whether relations may share a surface: "allow" as published, or "forbid".
    """

    num_entities: int = 5000
    num_relations: int = 37
    num_facts: int = 50000
    num_test_utterances: int = 5000
    num_entity_words: int = 1
    num_expressions_per_entity: int = 4
    num_facts_per_utterance: int = 2
    entity_vocabulary: str | None = None
    relation_vocabulary: str | None = None
    seed: int = 0
    separator: str = " "
    collisions: Literal["allow", "forbid"] = "allow"

    def __post_init__(self) -> None:
        for name in ("num_entities", "num_relations", "num_facts", "num_test_utterances", "num_facts_per_utterance"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.num_facts_per_utterance > MAX_FACTS:
            number = self.num_facts_per_utterance  # each combination of masks is a row: 2^n of them
            raise ValueError(f"num_facts_per_utterance: expected 1 to {MAX_FACTS}, found {number}")
        if not 1 <= self.num_expressions_per_entity <= MAX_EXPRESSIONS:
            number = self.num_expressions_per_entity
            raise ValueError(f"num_expressions_per_entity: expected 1 to {MAX_EXPRESSIONS}, found {number}")
        for name, only in (("num_entity_words", 1), ("entity_vocabulary", None)):
            if getattr(self, name) != only:
                raise ValueError(
                    f"{name}: expected {only}, found {getattr(self, name)!r}. The published generator reads this flag "
                    "and never uses it; entities are named by numbers"
                )
        if self.num_test_utterances > self.num_facts:
            raise ValueError(
                f"num_test_utterances: expected at most one for each of the {self.num_facts} facts, found "
                f"{self.num_test_utterances}"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected 0 to {2**32 - 1}, found {self.seed}")
        if self.collisions not in ("allow", "forbid"):
            raise ValueError(f'collisions: expected "allow" or "forbid", found {self.collisions!r}')


@dataclass(frozen=True)
class Utterance:
    """Sentence that states a fact in one of its surfaces.

    Args:
        fact: ``(relation, (entity, entity))``.
        template: The relation's surface, with slots ``{0}`` and ``{1}``.
        surfaces: The two entities' surfaces.
        name: ``r{R}-e{A}-e{B}-rx{paraphrase}-ex{i}-ex{j}``.
    """

    fact: Fact
    template: str
    surfaces: tuple[str, str]
    name: str

    def masked(self, slot: int, sentinel: int) -> tuple[str, str]:
        """Return the sentence with one entity masked, and the target that names it."""
        mask = f"<extra_id_{sentinel}>"
        words = [mask if index == slot else surface for index, surface in enumerate(self.surfaces)]
        return self.template.format(*words), f"{mask} {self.surfaces[slot]}"


class SynthCorpus:
    """Facts, sentences, training rows and queries of one setting, generated lazily.

    Args:
        settings: The generator's flags.

    Attributes:
        facts: All facts, in the order that test facts are drawn from.
        test_facts: Indices of the facts with a held-out sentence.
        relations: Paraphrases of each relation.

    Raises:
        ValueError: If the vocabulary is malformed or too small, or there is no room for so many facts.
    """

    def __init__(self, settings: SynthSettings) -> None:
        self.settings = settings
        self.relations = _draw_relation_surfaces(settings)
        rng = np.random.RandomState(settings.seed)
        self.facts = _draw_facts(settings, rng)
        self.test_facts: np.ndarray = rng.choice(settings.num_facts, settings.num_test_utterances, replace=False)

        # What the published code leaves to the order of a set is drawn: a held-out sentence per test fact, and the
        # order of the rest.
        per_fact = np.array([self._surfaces_of(fact) for fact in self.facts])
        self._first_utterance = np.concatenate([[0], np.cumsum(per_fact)])
        order_rng = np.random.default_rng([settings.seed, 1])
        self.held_out = self._first_utterance[self.test_facts] + order_rng.integers(per_fact[self.test_facts])
        is_training = np.ones(self._first_utterance[-1], dtype=bool)
        is_training[self.held_out] = False
        self.training_utterances: np.ndarray = order_rng.permutation(np.flatnonzero(is_training))

    def _surfaces_of(self, fact: Fact) -> int:
        return len(self.relations[fact[0]]) * self.settings.num_expressions_per_entity**2

    @property
    def num_rows(self) -> int:
        """Number of training rows: each row's facts are masked in every combination."""
        per_row = self.settings.num_facts_per_utterance
        whole, rest = divmod(len(self.training_utterances), per_row)
        return whole * 2**per_row + (2**rest if rest else 0)

    def utterance(self, index: int) -> Utterance:
        """Return a sentence by its index, counted over facts, then paraphrases, then the entities' surfaces."""
        which = int(np.searchsorted(self._first_utterance, index, side="right")) - 1
        fact = self.facts[which]
        relation, entities = fact
        expressions = self.settings.num_expressions_per_entity
        rest, j = divmod(int(index - self._first_utterance[which]), expressions)
        paraphrase, i = divmod(rest, expressions)
        surfaces = entity_surfaces(entities[0])[i], entity_surfaces(entities[1])[j]
        name = f"{fact_id(fact)}-rx{paraphrase}-ex{i}-ex{j}"
        return Utterance(fact, self.relations[relation][paraphrase], surfaces, name)

    def training_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the training rows in order; ``example_id`` counts them."""
        per_row = self.settings.num_facts_per_utterance
        indices = iter(self.training_utterances.tolist())
        example_id = 0
        while group := [self.utterance(index) for index in islice(indices, per_row)]:
            facts = [fact_id(utterance.fact) for utterance in group]
            masked = [[u.masked(slot, sentinel) for slot in (0, 1)] for sentinel, u in enumerate(group)]
            for slots in product((0, 1), repeat=len(group)):
                chosen = [masked[sentinel][slot] for sentinel, slot in enumerate(slots)]
                yield {
                    "example_id": example_id,
                    "inputs_pretokenized": self.settings.separator.join(text for text, _ in chosen),
                    "targets_pretokenized": " ".join(target for _, target in chosen),
                    "guid": ",".join(f"{u.name}-s{slot}" for u, slot in zip(group, slots, strict=True)),
                    "facts": facts,
                }
                example_id += 1

    def query_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the query rows: each held-out sentence with either entity masked."""
        proponents = self._proponent_rows()
        expressions = self.settings.num_expressions_per_entity
        query_id = 0
        for which, index in zip(self.test_facts.tolist(), self.held_out.tolist(), strict=True):
            utterance = self.utterance(index)
            for slot in (0, 1):
                text, target = utterance.masked(slot, 0)
                yield {
                    "query_id": query_id,
                    "inputs_pretokenized": text,
                    "targets_pretokenized": target,
                    "guid": f"{utterance.name}-s{slot}",
                    "fact": fact_id(utterance.fact),
                    "answers": list(entity_surfaces(utterance.fact[1][slot])[:expressions]),
                    "proponent_ids": proponents[which],
                }
                query_id += 1

    def _proponent_rows(self) -> dict[int, np.ndarray]:
        """Return the ids of all training rows that state each test fact, ascending, by the fact's index."""
        per_row = self.settings.num_facts_per_utterance
        rows_each = 2**per_row
        fact_of = np.searchsorted(self._first_utterance, self.training_utterances, side="right") - 1
        row_of = np.arange(len(fact_of)) // per_row
        order = np.argsort(fact_of, kind="stable")
        starts = np.searchsorted(fact_of[order], np.arange(len(self.facts) + 1))
        proponents = {}
        for fact in self.test_facts.tolist():
            groups = np.unique(row_of[order[starts[fact] : starts[fact + 1]]])
            ids = (groups[:, None] * rows_each + np.arange(rows_each)).ravel()
            proponents[fact] = ids[ids < self.num_rows]  # the last row may hold fewer facts
        return proponents


def fact_id(fact: Fact) -> str:
    """Return a fact's key, ``r{R}-e{A}-e{B}``."""
    relation, (first, second) = fact
    return f"r{relation}-e{first}-e{second}"


def entity_surfaces(entity: int) -> tuple[str, str, str, str]:
    """Return the four surfaces of an entity.

    Example:
        >>> entity_surfaces(1004)
        ('entity-1004', '1004-entity', 'entity-MIV', 'MIV-entity')
    """
    numeral = roman(entity)
    return f"entity-{entity}", f"{entity}-entity", f"entity-{numeral}", f"{numeral}-entity"


def roman(number: int) -> str:
    """Write a number as a Roman numeral of any length; 0 is N, as mediaeval computists wrote it.

    Example:
        >>> roman(4784), roman(0)
        ('MMMMDCCLXXXIV', 'N')
    """
    if number == 0:
        return "N"
    numerals = ("M", 1000), ("CM", 900), ("D", 500), ("CD", 400), ("C", 100), ("XC", 90), ("L", 50), ("XL", 40)
    text = ""
    for letters, value in (*numerals, ("X", 10), ("IX", 9), ("V", 5), ("IV", 4), ("I", 1)):
        count, number = divmod(number, value)
        text += letters * count
    return text


def vocabulary_text(path: str | Path | None = None) -> str:
    """Read a vocabulary file, or the one that ships with ftrace, without its byte order mark, if it has one.

    Raises:
        ValueError: If the file is missing, or not UTF-8.
    """
    file = files("ftrace.data") / "relations.txt" if path is None else Path(path)
    try:
        return file.read_text(encoding="utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise ValueError(f"relation_vocabulary: can't read {str(path)!r} ({error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, found something else ({error}). Save the file as UTF-8") from error


def read_relations(path: str | Path | None = None) -> list[list[str]]:
    """Read relations and their paraphrases from a vocabulary file, or from the one that ships with ftrace.

    Raises:
        ValueError: If the file is missing or a paraphrase has not exactly the slots ``{0}`` and ``{1}``.
    """
    name = "relations.txt" if path is None else str(path)
    relations = []
    for number, line in enumerate(vocabulary_text(path).splitlines(), 1):
        if not line.strip():
            continue
        paraphrases = [paraphrase.strip() for paraphrase in line.split("|")]
        for paraphrase in paraphrases:
            problem = _template_problem(paraphrase)
            if problem:
                raise ValueError(f"{name}, line {number}: {paraphrase!r} {problem}")
        relations.append(paraphrases)
    return relations


def _template_problem(paraphrase: str) -> str | None:
    """Say why a paraphrase is not a template; None if it is one."""
    try:
        fields = [field for field in Formatter().parse(paraphrase) if field[1] is not None]
    except ValueError as error:  # a single brace
        return f"is no template ({error})"
    slots = [name for _, name, _, _ in fields]
    for slot in ("0", "1"):
        if slot not in slots:
            return f"has no {{{slot}}}"
    if set(slots) != {"0", "1"} or any(spec or conversion for _, _, spec, conversion in fields):
        return "has other slots than {0} and {1}"
    return None


def _draw_relation_surfaces(settings: SynthSettings) -> list[list[str]]:
    lines = read_relations(settings.relation_vocabulary)
    count = settings.num_relations
    if len(lines) < count:
        name = settings.relation_vocabulary or "the vocabulary of ftrace"
        raise ValueError(f"num_relations: expected at most {len(lines)}, the lines of {name}, found {count}")
    if settings.collisions == "allow":  # with replacement, as published
        seeds = (settings.seed * count + relation for relation in range(count))
        return [lines[int(np.random.RandomState(seed % 2**32).choice(len(lines), size=1)[0])] for seed in seeds]
    chosen = [lines[i] for i in np.random.RandomState(settings.seed).permutation(len(lines))[:count]]
    surfaces = [surface for paraphrases in chosen for surface in paraphrases]
    shared = sorted({surface for surface in surfaces if surfaces.count(surface) > 1})
    if shared:
        raise ValueError(f'collisions: expected "forbid" to find distinct surfaces, found {shared[0]!r} twice')
    return chosen


def _draw_facts(settings: SynthSettings, rng: np.random.RandomState) -> list[Fact]:
    """Draw facts until there are enough; the order is that of a set of integer tuples, as published.

    A draw whose relation already has its first or second entity is rejected, and both partial facts count as taken
    all the same: so fewer facts fit than relations x entities.
    """
    taken: set[tuple[int, int | None, int | None]] = set()
    facts: set[Fact] = set()
    room = _Room(settings.num_relations, settings.num_entities)
    while len(facts) < settings.num_facts:
        relation = int(rng.randint(0, settings.num_relations))
        first, second = rng.randint(0, settings.num_entities, 2).tolist()
        with_first, with_second = (relation, first, None), (relation, None, second)
        if with_first not in taken and with_second not in taken:
            facts.add((relation, (first, second)))
        for slot, partial in enumerate((with_first, with_second)):
            if partial not in taken:
                taken.add(partial)
                room.take(relation, slot)
        if room.is_full() and len(facts) < settings.num_facts:
            raise ValueError(
                f"num_facts: expected at most {len(facts)}, all that fit {settings.num_relations} one-to-one relations "
                f"between {settings.num_entities} entities at seed {settings.seed}, found {settings.num_facts}"
            )
    return list(facts)


class _Room:
    """Counter of the entities still free in either slot of each relation; a relation without one is full."""

    def __init__(self, num_relations: int, num_entities: int) -> None:
        self._free = [[num_entities, num_entities] for _ in range(num_relations)]
        self._open = num_relations

    def take(self, relation: int, slot: int) -> None:
        was_open = all(self._free[relation])
        self._free[relation][slot] -= 1
        self._open -= was_open and not all(self._free[relation])

    def is_full(self) -> bool:
        return not self._open
