"""Vocabularies of FTRACE-SYNTH, one relation or entity a line.

Relations have paraphrases: ``{0} lives in {1} | the home of {0} is in {1}``. For readable entities the types of both
slots come first: ``person, place | {0} lives in {1}``. Entities have a type and surfaces: ``person | Mira Vellorin |
Vellorin, Mira``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from string import Formatter
from typing import Literal, NamedTuple

from ftrace.data.synth_settings import MAX_EXPRESSIONS
from ftrace.data.text import SENTINEL
from ftrace.data.words import words_of

Shipped = Literal["relations.txt", "readable_relations.txt", "entities.txt"]

_TYPES = re.compile(r"([\w-]+)\s*,\s*([\w-]+)")
_TYPE = re.compile(r"[\w-]+")


class Relation(NamedTuple):
    """Relation between two entities.

    Args:
        paraphrases: Its surfaces, with slots ``{0}`` and ``{1}``.
        types: Types of the entities in both slots; None if any entity fits.
        place: File and line, for errors.
    """

    paraphrases: list[str]
    types: tuple[str, str] | None
    place: str


class Entity(NamedTuple):
    """Entity of a vocabulary.

    Args:
        type: Its type, such as person.
        surfaces: The names that it goes by.
    """

    type: str
    surfaces: tuple[str, ...]


def vocabulary_text(path: str | Path | None, shipped: Shipped) -> str:
    """Read a vocabulary file without its byte order mark, if it has one.

    Args:
        path: The file; None: one that ships with ftrace.
        shipped: Name of that one, which tells what vocabulary it is.

    Raises:
        ValueError: If the file is missing, or not UTF-8.
    """
    file = files("ftrace.data") / shipped if path is None else Path(path)
    try:
        return file.read_text(encoding="utf-8").removeprefix("\ufeff")
    except OSError as error:
        flag = "entity_vocabulary" if shipped == "entities.txt" else "relation_vocabulary"
        raise ValueError(f"{flag}: can't read {str(path)!r} ({error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, found something else ({error}). Save the file as UTF-8") from error


def _lines(path: str | Path | None, shipped: Shipped) -> Iterator[tuple[str, list[str]]]:
    """Yield each line's place and its fields; empty lines are left out."""
    for number, line in enumerate(vocabulary_text(path, shipped).splitlines(), 1):
        if line.strip():
            name = shipped if path is None else str(path)
            yield f"{name}, line {number}", [field.strip() for field in line.split("|")]


def read_relations(path: str | Path | None = None, *, readable: bool = False) -> list[Relation]:
    """Read relations and their paraphrases from a vocabulary file.

    Args:
        path: The file; None: the one that ships with ftrace.
        readable: Whether that is the one for readable entities, which has the types of slots.

    Raises:
        ValueError: If the file is missing or a paraphrase has not exactly the slots ``{0}`` and ``{1}``.
    """
    relations = []
    for place, fields in _lines(path, "readable_relations.txt" if readable else "relations.txt"):
        types = _TYPES.fullmatch(fields[0])
        paraphrases = fields[1:] if types else fields
        if not paraphrases:
            raise ValueError(f"{place}: expected a paraphrase after the types {fields[0]!r}, found none")
        for paraphrase in paraphrases:
            problem = _template_problem(paraphrase)
            if problem:
                raise ValueError(f"{place}: {paraphrase!r} {problem}")
        relations.append(Relation(paraphrases, (types[1], types[2]) if types else None, place))
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


def read_entities(path: str | Path | None = None) -> list[Entity]:
    """Read entities from a vocabulary file.

    A surface belongs to one entity, whatever its case, spaces and punctuation, and is no part of another entity's: who
    answers with it has named that entity and no other.

    Args:
        path: The file; None: the one that ships with ftrace.

    Raises:
        ValueError: If the file is missing or has no entities, a line is not a type and 1 to 4 surfaces, a surface can't
            stand in a row of text, or two entities have names that can be confused.
    """
    entities, places = [], []
    for place, (kind, *surfaces) in _lines(path, "entities.txt"):
        if not 1 <= len(surfaces) <= MAX_EXPRESSIONS:
            raise ValueError(
                f'{place}: expected a type and 1 to {MAX_EXPRESSIONS} surfaces, such as "person | Ann Lee | Lee, Ann", '
                f"found {len(surfaces)} surfaces"
            )
        if not _TYPE.fullmatch(kind):
            raise ValueError(f"{place}: expected a type of one word first, such as person, found {kind!r}")
        surfaces = [" ".join(surface.split()) for surface in surfaces]
        for surface in surfaces:
            problem = _surface_problem(surface)
            if problem:
                raise ValueError(f"{place}: {surface!r} {problem}")
        entities.append(Entity(kind, tuple(surfaces)))
        places.append(place)
    if not entities:
        raise ValueError(f"{path}: expected at least one entity, found none")
    _check_surfaces(entities, places)
    return entities


def _surface_problem(surface: str) -> str | None:
    """Say why a text is not an entity's surface; None if it is one."""
    if not words_of(surface):
        return "is no surface: it has no letter or digit"
    if SENTINEL.search(surface):
        return "is no surface: it has a mask in it"
    if any(unicodedata.category(character) == "Cc" for character in surface):
        return "is no surface: it has a control character in it"
    return None


def _check_surfaces(entities: list[Entity], places: list[str]) -> None:
    """Refuse surfaces of two entities that are the same, or of which one is a part of the other, as whole words."""
    spelled: dict[str, int] = {}
    owners: dict[tuple[str, ...], int] = {}
    for number, entity in enumerate(entities):
        for surface in entity.surfaces:
            words = tuple(words_of(surface))
            earlier = spelled.setdefault("".join(words), number)
            if earlier != number or words in owners:
                raise ValueError(
                    f"{places[number]}: {surface!r} is also a surface of {places[earlier]}, apart from case, spaces "
                    "and punctuation. Give each entity surfaces of its own"
                )
            owners[words] = number
    for number, entity in enumerate(entities):
        for surface in entity.surfaces:
            words = tuple(words_of(surface))
            for start in range(len(words)):
                for end in range(start + 1, len(words) + 1):
                    owner = owners.get(words[start:end], number)
                    if owner != number:
                        raise ValueError(
                            f"{places[owner]}: {' '.join(words[start:end])!r} is also a part of {surface!r} of "
                            f"{places[number]}. Give each entity surfaces that are no part of another's"
                        )
