"""The tables of FTRACE-SYNTH."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from ftrace.arguments import checked
from ftrace.data.fact_keys import FactParts, synth_parts
from ftrace.data.fact_tables import FactDataSettings, FactTables
from ftrace.data.synth_entities import draw_entities, entity_surfaces, surfaces_of
from ftrace.data.synth_files import FORM, write_synth
from ftrace.data.synth_settings import SynthSettings
from ftrace.data.synth_vocabularies import vocabulary_text


@checked
class SynthTables(FactTables):
    """Tables of FTRACE-SYNTH: generated once, cached by the hash of its settings.

    Args:
        synth: The generator's flags.
        args: Settings of all data modules by place, from ``data_dir`` on: see :class:`FactDataSettings`.
        settings: The same by name.

    Attributes:
        data_path: The generated folder, with ``train.parquet`` and ``queries.parquet``.
    """

    form = FORM

    def __init__(
        self,
        synth: SynthSettings = SynthSettings(),  # noqa: B008 - frozen
        *args: Any,
        **settings: Any,
    ) -> None:
        super().__init__(f"synth-{_hash(synth)}", FactDataSettings(*args, **settings))
        self.synth = synth

    @override
    def make(self) -> None:
        if not self.is_made():
            write_synth(self.data_path, self.synth, progress=True)

    @override
    def parts_of_fact(self, fact: str) -> FactParts:
        parts = synth_parts(fact)
        if parts is None:
            raise ValueError(f"fact: expected a key such as r3-e1-e2, found {fact!r}")
        return parts

    @override
    def answer_forms(self) -> Iterable[Sequence[str]]:
        """Yield the surfaces of each entity."""
        entities = draw_entities(self.synth)
        return (surfaces_of(self.synth, entities, entity) for entity in range(self.synth.num_entities))

    @override
    def subject_of_query(self, row: Mapping[str, Any]) -> str:
        """Return the entity that is not masked; if it is numbered, in the surface that the query's name encodes."""
        subject = super().subject_of_query(row)
        if subject is not None:
            return subject
        name = re.fullmatch(r"r\d+-e(\d+)-e(\d+)-rx\d+-ex(\d)-ex(\d)-s([01])", row["guid"])
        if not name:
            raise ValueError(f"guid: expected a name such as r3-e1-e2-rx0-ex1-ex0-s0, found {row['guid']!r}")
        *entities, first, second, masked = map(int, name.groups())
        return entity_surfaces(entities[1 - masked])[(first, second)[1 - masked]]


def _hash(synth: SynthSettings) -> str:
    """Hash the flags, with texts of vocabularies in place of paths; for readable entities also of those of ftrace."""
    flags = synth.flags()
    if synth.is_readable:
        flags["entity_vocabulary"] = vocabulary_text(synth.entity_vocabulary, "entities.txt")
        flags["relation_vocabulary"] = vocabulary_text(synth.relation_vocabulary, "readable_relations.txt")
    elif synth.relation_vocabulary and Path(synth.relation_vocabulary).exists():
        flags["relation_vocabulary"] = vocabulary_text(synth.relation_vocabulary, "relations.txt")
    return hashlib.sha256(json.dumps(flags, sort_keys=True).encode()).hexdigest()[:12]
