"""Entities of FTRACE-SYNTH and their surfaces: numbers as published, or names of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ftrace.data.synth_settings import SynthSettings
from ftrace.data.synth_vocabularies import Entity, read_entities


def draw_entities(settings: SynthSettings) -> list[Entity] | None:
    """Draw the entities of a setting from its vocabulary, as many of each type as of another while there are enough.

    Returns:
        The entities, or None if they are numbered.

    Raises:
        ValueError: If the vocabulary is malformed or too small, or an entity has too few surfaces.
    """
    if not settings.is_readable:
        return None
    vocabulary = read_entities(settings.entity_vocabulary)
    name = settings.entity_vocabulary or "the vocabulary of ftrace"
    if settings.num_entities > len(vocabulary):
        raise ValueError(
            f"num_entities: expected at most {len(vocabulary)}, the lines of {name}, found {settings.num_entities}. "
            "For example num_entities 100, num_relations 10, num_facts 200, num_test_utterances 40, as in the demo"
        )
    fewest = min(vocabulary, key=lambda entity: len(entity.surfaces))
    if len(fewest.surfaces) < settings.num_expressions_per_entity:
        raise ValueError(
            f"num_expressions_per_entity: expected at most {len(fewest.surfaces)}, the surfaces of "
            f"{fewest.surfaces[0]!r} in {name}, found {settings.num_expressions_per_entity}"
        )
    rng = np.random.default_rng([settings.seed, 2])
    shuffled = [vocabulary[index] for index in rng.permutation(len(vocabulary))]
    drawn_before: dict[str, int] = {}
    ranks = []
    for entity in shuffled:
        ranks.append(drawn_before.get(entity.type, 0))
        drawn_before[entity.type] = ranks[-1] + 1
    in_turns = sorted(range(len(shuffled)), key=lambda index: (ranks[index], shuffled[index].type))
    return [shuffled[index] for index in in_turns[: settings.num_entities]]


def surfaces_of(settings: SynthSettings, entities: Sequence[Entity] | None, entity: int) -> tuple[str, ...]:
    """Return the surfaces that an entity has in a corpus.

    Args:
        settings: The generator's flags.
        entities: What :func:`draw_entities` returns.
        entity: Its number.
    """
    surfaces = entity_surfaces(entity) if entities is None else entities[entity].surfaces
    return surfaces[: settings.num_expressions_per_entity]


def entity_surfaces(entity: int) -> tuple[str, str, str, str]:
    """Return the four surfaces of a numbered entity.

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
