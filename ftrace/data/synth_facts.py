"""Relations and facts of FTRACE-SYNTH, drawn from the seed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from ftrace.data.synth_settings import SynthSettings
from ftrace.data.synth_vocabularies import Entity, Relation, read_relations

Fact = tuple[int, tuple[int, int]]


def fact_id(fact: Fact) -> str:
    """Return a fact's key, ``r{R}-e{A}-e{B}``."""
    relation, (first, second) = fact
    return f"r{relation}-e{first}-e{second}"


def draw_relations(settings: SynthSettings, entities: Sequence[Entity] | None) -> list[Relation]:
    """Draw the relations of a setting from its vocabulary.

    Args:
        settings: The generator's flags.
        entities: The entities, if they have types.

    Raises:
        ValueError: If the vocabulary is malformed or too small, a relation's types are missing or unknown, or surfaces
            that may not be shared are.
    """
    lines = read_relations(settings.relation_vocabulary, readable=settings.is_readable)
    if entities is not None:
        for line in lines:
            _check_types(line, {entity.type for entity in entities})
    count = settings.num_relations
    if len(lines) < count:
        name = settings.relation_vocabulary or "the vocabulary of ftrace"
        raise ValueError(f"num_relations: expected at most {len(lines)}, the lines of {name}, found {count}")
    if settings.collisions == "allow":  # with replacement, as published
        seeds = (settings.seed * count + relation for relation in range(count))
        return [lines[int(np.random.RandomState(seed % 2**32).choice(len(lines), size=1)[0])] for seed in seeds]
    chosen = [lines[i] for i in np.random.RandomState(settings.seed).permutation(len(lines))[:count]]
    surfaces = [surface for relation in chosen for surface in relation.paraphrases]
    shared = sorted({surface for surface in surfaces if surfaces.count(surface) > 1})
    if shared:
        raise ValueError(f'collisions: expected "forbid" to find distinct surfaces, found {shared[0]!r} twice')
    return chosen


def _check_types(relation: Relation, known: Collection[str]) -> None:
    """Refuse a relation that doesn't say which entities fit it."""
    if relation.types is None:
        raise ValueError(
            f"{relation.place}: expected the types of both slots first, because entities are readable and have types, "
            f'found none. Write them: "person, place | {relation.paraphrases[0]}"'
        )
    for name in relation.types:
        if name not in known:
            raise ValueError(
                f"{relation.place}: expected types of the entities, which are {sorted(known)}, found {name!r}. Correct "
                "it, or take more entities"
            )


def draw_typed_facts(
    settings: SynthSettings, relations: Sequence[Relation], entities: Sequence[Entity], rng: np.random.RandomState
) -> list[Fact]:
    """Draw facts about entities of the types that each relation asks for, at most one a slot and entity.

    Each relation pairs all entities of its types, and the facts are drawn from these pairs. Where both types are the
    same, an entity has one slot or the other: nobody's teacher has a teacher. Small models confuse such chains.

    Raises:
        ValueError: If there is no room for so many facts.
    """
    pairs: list[Fact] = []
    for number, relation in enumerate(relations):
        assert relation.types is not None
        first, second = (
            rng.permutation([index for index, entity in enumerate(entities) if entity.type == name]).tolist()
            for name in relation.types
        )
        if relation.types[0] == relation.types[1]:
            half = len(first) // 2
            first, second = first[:half], first[half:]
        pairs += [(number, pair) for pair in zip(first, second, strict=False)]
    if len(pairs) < settings.num_facts:
        raise ValueError(
            f"num_facts: expected at most {len(pairs)}, all that fit {settings.num_relations} one-to-one relations "
            f"between {settings.num_entities} entities of their types at seed {settings.seed}, found "
            f"{settings.num_facts}. Take more entities or relations"
        )
    return [pairs[index] for index in rng.permutation(len(pairs))[: settings.num_facts]]


def draw_facts(settings: SynthSettings, rng: np.random.RandomState) -> list[Fact]:
    """Draw facts about numbered entities until there are enough, in the order of a set of integer tuples, as published.

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
