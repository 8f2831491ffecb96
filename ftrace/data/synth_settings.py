"""Flags of the FTRACE-SYNTH generator."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from ftrace.arguments import Name, Positive, Seed, Within, checked

MAX_EXPRESSIONS = 4
MAX_FACTS = 8  # in a row: each combination of masks is one, 2^n of them
MAX_ENTITIES = 10_000_000  # they are held in memory


@checked
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
        entity_vocabulary: A file with one entity a line, its type and its surfaces separated by " | ": implies readable
            entities. Default: the vocabulary that ships with ftrace. (The published generator never uses this flag.)
        relation_vocabulary: A file with one relation a line, paraphrases separated by " | ", slots {0} and {1}; for
            readable entities, the types of both slots come first: "person, place | {0} lives in {1}". Default: the
            vocabulary that ships with ftrace.
        seed: Seed of every random draw.
        separator: Text between the facts of a row.
        collisions: Whether relations may share a surface: "allow" as published, or "forbid".
        entities: "numbered" as published, such as entity-38; or "readable", names of the vocabulary's entities. Facts
            about readable entities respect types: persons live in places.
    """

    num_entities: Annotated[int, Within(1, MAX_ENTITIES)] = 5000
    num_relations: Positive = 37
    num_facts: Annotated[int, Within(1, MAX_ENTITIES)] = 50000
    num_test_utterances: Positive = 5000
    num_entity_words: Positive = 1
    num_expressions_per_entity: Annotated[int, Within(1, MAX_EXPRESSIONS)] = 4
    num_facts_per_utterance: Annotated[int, Within(1, MAX_FACTS)] = 2
    entity_vocabulary: Name | None = None
    relation_vocabulary: Name | None = None
    seed: Seed = 0
    separator: str = " "
    collisions: Literal["allow", "forbid"] = "allow"
    entities: Literal["numbered", "readable"] = "numbered"

    def __post_init__(self) -> None:
        if self.num_entity_words != 1:
            raise ValueError(
                f"num_entity_words: expected 1, found {self.num_entity_words!r}. The published generator reads this "
                "flag and never uses it; for names of several words use entities: readable"
            )
        if self.num_test_utterances > self.num_facts:
            raise ValueError(
                f"num_test_utterances: expected at most one for each of the {self.num_facts} facts, found "
                f"{self.num_test_utterances}"
            )

    @property
    def is_readable(self) -> bool:
        """Whether entities have the names of a vocabulary, and types."""
        return self.entities == "readable" or self.entity_vocabulary is not None

    def flags(self) -> dict[str, Any]:
        """Return all flags that tell data apart; ``entities`` only where they are readable.

        Data of the published form are known by the flags that they had before there were others: folders and
        fingerprints that were made from them stay.
        """
        flags = asdict(self)
        del flags["entities"]
        return {**flags, "entities": "readable"} if self.is_readable else flags
