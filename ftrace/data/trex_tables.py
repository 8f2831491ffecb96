"""The tables of FTRACE-TREX."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from typing_extensions import override

from ftrace.arguments import Name, checked
from ftrace.data.data_folder import whole_manifest
from ftrace.data.fact_keys import FactParts, trex_parts
from ftrace.data.fact_tables import FactDataSettings, FactTables
from ftrace.data.messages import tell, warn
from ftrace.data.trex_files import FORM, subject_of_query, write_trex
from ftrace.data.trex_sources import open_trex
from ftrace.shown_text import plain


@checked
class TrexTables(FactTables):
    """Tables of FTRACE-TREX: sentences of Wikipedia with the facts that they state, and queries of LAMA.

    Indexed once, cached by the hash of its files. A query's ground-truth proponents are all masked variants of each
    sentence that states its fact; queries without proponents are left out, counted and reported. Source: Akyürek et
    al. 2022, arXiv 2205.11482.

    Args:
        source: A data set on the Hugging Face hub, a folder with the same files (``abstracts*`` and ``queries*``; JSON
            lines, JSON or Parquet), or "sample": some sentences about made-up places and people that ship with ftrace.
        args: Settings of all data modules by place, from ``data_dir`` on: see :class:`FactDataSettings`.
        settings: The same by name.

    Attributes:
        data_path: The indexed folder, with ``train.parquet`` and ``queries.parquet``.
    """

    form = FORM

    def __init__(
        self,
        source: Name = "ekinakyurek/ftrace",
        *args: Any,
        **settings: Any,
    ) -> None:
        self.source = open_trex(source)
        super().__init__(f"trex-{self.source.key()}", FactDataSettings(*args, **settings))

    @override
    def make(self) -> None:
        manifest = whole_manifest(self.data_path, FORM)
        if manifest is None:
            abstracts, queries = self.source.rows("abstracts"), self.source.rows("queries")
            manifest = write_trex(self.data_path, abstracts, queries, self.source.name, progress=True)
        tell(
            f"FTRACE-TREX from {plain(self.source.name)}: {manifest['num_train']:,} rows, {manifest['num_queries']:,} "
            f"queries, {manifest['num_queries_without_proponents']:,} more left out whose fact no row states"
        )
        other = manifest.get("num_queries_with_an_answer_of_another_surface")
        if other:
            warn(
                f"{plain(self.source.name)}: {other:,} queries have another answer than the surface of their object or "
                "their subject; they accept the answer as it is"
            )

    @override
    def parts_of_fact(self, fact: str) -> FactParts:
        parts = trex_parts(fact)
        if parts is None:
            raise ValueError(f"fact: expected a key such as P361,Q48,Q771405, found {fact!r}")
        return parts

    @override
    def subject_of_query(self, row: Mapping[str, Any]) -> str | None:
        """Return the one of the fact's subject and object that is not masked, if the text has it."""
        if "subject" in row:
            return super().subject_of_query(row)
        return self._subjects[row["uuid"], row["inputs_pretokenized"], row["targets_pretokenized"]]

    @cached_property
    def _subjects(self) -> dict[tuple[str, ...], str | None]:
        """Subjects by the query's id and texts, from the source: older folders don't have them."""
        return {
            (row.text("uuid"), row.text("inputs_pretokenized"), row.text("targets_pretokenized")): subject_of_query(row)
            for row in self.source.rows("queries")
        }
