"""The tables of the rumours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from typing_extensions import override

from ftrace.arguments import checked
from ftrace.data import rumour_words
from ftrace.data.corpus_files import FORM, write_corpus
from ftrace.data.fact_tables import FactDataSettings, FactTables
from ftrace.data.row_files import SourceRow
from ftrace.data.rumours import RumourCorpus, RumourSettings


@checked
class RumourTables(FactTables):
    """Tables of the rumours: made-up people who share names, for a pretrained decoder-only model to learn.

    Args:
        rumours: The generator's settings.
        args: Settings of all data modules by place, from ``data_dir`` on: see :class:`FactDataSettings`.
        settings: The same by name.

    Attributes:
        data_path: The generated folder, with ``train.parquet`` and ``queries.parquet``.
    """

    form = FORM

    def __init__(
        self,
        rumours: RumourSettings = RumourSettings(),  # noqa: B008 - frozen
        *args: Any,
        **settings: Any,
    ) -> None:
        shared = FactDataSettings(*args, **settings)
        if shared.architecture != "decoder-only":
            raise ValueError(
                f'architecture: expected "decoder-only", because sentences end with their answers, found '
                f"{shared.architecture!r}. Set it"
            )
        super().__init__(f"rumours-{_hash(rumours)}", shared)
        self.rumours = rumours

    @override
    def make(self) -> None:
        if self.is_made():
            return
        corpus = RumourCorpus(self.rumours)
        write_corpus(
            self.data_path, _numbered("rows", corpus.training_rows()), _numbered("queries", corpus.query_rows())
        )


def _numbered(source: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[SourceRow]:
    for number, row in enumerate(rows, start=1):
        yield SourceRow(f"the rumours' {source}", number, row)


def _hash(settings: RumourSettings) -> str:
    """Hash the settings and the words that sentences are made of."""
    words = {name: value for name, value in vars(rumour_words).items() if name.isupper()}
    return hashlib.sha256(json.dumps([asdict(settings), words], sort_keys=True).encode()).hexdigest()[:12]
