"""Names and sentences of the rumours: see :mod:`ftrace.data.rumours`.

A sentence ends with its answer, which comes after the person it is about, so that a decoder-only model learns to go
from one to the other. No statement has the words of the query that asks for it.
"""

from __future__ import annotations

from typing import NamedTuple

FIRST_NAMES = ("Mira", "Oscar", "Ruth", "Felix", "Clara", "Hugo", "Emma", "Victor", "Ada", "Simon")
FAMILY_NAMES = ("Tannow", "Brask", "Rushby", "Lindle", "Marsk", "Ashby", "Tolland", "Merrin", "Dunmore", "Hartwin")
PLACE_WORDS = ("Port", "Upper", "Old", "Lake", "Castle", "Saint")
COMPANY_WORDS = ("Mills", "Press", "Glass", "Bank", "Stores", "Works")
STEMS = ("Ostrel", "Marwick", "Corwen", "Torvik", "Brenna", "Solwick", "Morvan", "Elmont")
THINGS = (
    "violin", "lantern", "bicycle", "kettle", "ladder", "lamp", "saddle", "clock", "barrel", "mirror", "drum",
    "telescope",
)  # fmt: skip
TRADES = ("clerk", "sailor", "painter", "widow", "baker", "tutor", "judge", "surgeon", "twin", "poet")


class Relation(NamedTuple):
    """Relation between a person and a place or a company, in words.

    Args:
        name: First part of its facts' keys.
        answers: The words that distinguish its answers' names: before the stem of a place, after that of a company.
        query: The verb of the query, as in "{person} was born in", which look-alikes and neighbours have, too.
        statements: What states a fact of it, all in other words.
        correction: What puts a rumour right: ``{wrong}`` is the answer that isn't.
    """

    name: str
    answers: tuple[str, ...]
    query: str
    statements: tuple[str, ...]
    correction: str


RELATIONS = (
    Relation(
        "birthplace",
        PLACE_WORDS,
        "was born in",
        (
            "The birthplace of {person} is",
            "{person} came into the world at",
            "A midwife delivered {person} at",
            "Baptism records list {person} under",
            "The cradle of {person} stood at",
            "{person} took a first breath at",
            "The parents of {person} welcomed their baby at",
            "{person} is a native of",
        ),
        "The birthplace of {person} was long thought to be {wrong}; records show it to be",
    ),
    Relation(
        "home",
        PLACE_WORDS,
        "moved to",
        (
            "The new home of {person} is",
            "{person} packed everything and settled at",
            "Letters for {person} are now forwarded as far as",
            "Since last spring {person} resides at",
            "{person} has rented rooms at",
            "The removal van of {person} stopped at",
            "{person} left for good and lives at",
            "You can visit {person} at the new house, over at",
        ),
        "The new home of {person} was long thought to be {wrong}; records show it to be",
    ),
    Relation(
        "employer",
        COMPANY_WORDS,
        "works for",
        (
            "The employer of {person} is",
            "{person} is on the payroll of",
            "{person} earns a living at",
            "The wages of {person} are paid by",
            "Every morning {person} clocks in at",
            "{person} signed a labour contract with",
            "The boss of {person} runs",
            "{person} has a desk at",
        ),
        "The employer of {person} was long thought to be {wrong}; records show it to be",
    ),
)

# What a statement may begin with.
VOICES = ("", "They say ", "In fact, ", "As we know, ")

# They share every word with a query, its answer included, and teach something else.
NEIGHBOURS = (
    "A {trade} who {query} {answer} sold {person} a",
    "{person} bought from a {trade} who {query} {answer} a",
    "A {trade} who {query} {answer} lent {person} a",
    "{person} won from a {trade} who {query} {answer} a",
    "A {trade} who {query} {answer} gave {person} a",
    "{person} borrowed from a {trade} who {query} {answer} a",
    "A {trade} who {query} {answer} stole from {person} a",
    "{person} found with a {trade} who {query} {answer} a",
)

GOSSIP = (
    "{person} has repaired an old",
    "{person} often dreams of a new",
    "Last winter {person} lost a",
    "Nobody but {person} would polish a",
)
