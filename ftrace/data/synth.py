"""FTRACE-SYNTH: facts about made-up entities, each stated in many surfaces.

Reproduces the facts and test facts of the published generator (Akyürek et al. 2022, arXiv 2205.11482) at seed 0, but
not its defects: two facts a row give rows, facts are joined by a space, entity 0 has a Roman form, and everything
that the published code leaves to the order of a set of strings is drawn from the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import numpy as np

from ftrace.data.synth_entities import draw_entities, surfaces_of
from ftrace.data.synth_facts import Fact, draw_facts, draw_relations, draw_typed_facts, fact_id
from ftrace.data.synth_settings import SynthSettings


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
        relation_types: Types of each relation's slots; None if entities are numbered.
        entities: Entities of the vocabulary, in the order of their numbers; None if they are numbered only.

    Raises:
        ValueError: If a vocabulary is malformed or too small, or there is no room for so many facts.
    """

    def __init__(self, settings: SynthSettings) -> None:
        self.settings = settings
        self.entities = draw_entities(settings)
        relations = draw_relations(settings, self.entities)
        self.relations = [relation.paraphrases for relation in relations]
        rng = np.random.RandomState(settings.seed)
        self.relation_types = None if self.entities is None else [relation.types for relation in relations]
        self.facts = (
            draw_facts(settings, rng)
            if self.entities is None
            else draw_typed_facts(settings, relations, self.entities, rng)
        )
        self.test_facts: np.ndarray = rng.choice(settings.num_facts, settings.num_test_utterances, replace=False)

        # What the published code leaves to the order of a set is drawn: a held-out sentence per test fact, and the
        # order of the rest.
        per_fact = np.array([self._num_sentences(fact) for fact in self.facts])
        self._first_utterance = np.concatenate([[0], np.cumsum(per_fact)])
        order_rng = np.random.default_rng([settings.seed, 1])
        self.held_out = self._first_utterance[self.test_facts] + order_rng.integers(per_fact[self.test_facts])
        is_training = np.ones(self._first_utterance[-1], dtype=bool)
        is_training[self.held_out] = False
        self.training_utterances: np.ndarray = order_rng.permutation(np.flatnonzero(is_training))

    def _num_sentences(self, fact: Fact) -> int:
        return len(self.relations[fact[0]]) * self.settings.num_expressions_per_entity**2

    def surfaces(self, entity: int) -> tuple[str, ...]:
        """Return the surfaces that an entity has in this corpus."""
        return surfaces_of(self.settings, self.entities, entity)

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
        surfaces = self.surfaces(entities[0])[i], self.surfaces(entities[1])[j]
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
        """Yield the query rows: each held-out sentence with either entity masked.

        Rows have the field ``subject``, the entity that is not masked, where entities are readable.
        """
        proponents = self._proponent_rows()
        query_id = 0
        for which, index in zip(self.test_facts.tolist(), self.held_out.tolist(), strict=True):
            utterance = self.utterance(index)
            for slot in (0, 1):
                text, target = utterance.masked(slot, 0)
                subject = {} if self.entities is None else {"subject": utterance.surfaces[1 - slot]}
                yield {
                    "query_id": query_id,
                    "inputs_pretokenized": text,
                    "targets_pretokenized": target,
                    "guid": f"{utterance.name}-s{slot}",
                    **subject,
                    "fact": fact_id(utterance.fact),
                    "answers": list(self.surfaces(utterance.fact[1][slot])),
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
