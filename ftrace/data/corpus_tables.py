"""The tables of a user's own corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from ftrace.arguments import Name, checked
from ftrace.data.corpus_files import FORM, write_corpus
from ftrace.data.data_folder import whole_manifest
from ftrace.data.fact_tables import FactDataSettings, FactTables
from ftrace.data.messages import tell
from ftrace.data.row_files import SourceRow, hash_of_files, read_rows
from ftrace.progress import track


@checked
class CorpusTables(FactTables):
    """Tables of your own training rows and queries, from JSON-lines, JSON or Parquet files; see docs/data.md.

    Rows have ``inputs`` and ``targets`` (a masked sentence and its answers, or a beginning and its end), ``messages``
    or ``prompt`` and ``completion`` as TRL has them, or ``text`` alone, all of which a decoder-only model learns.
    ``facts`` of rows and ``fact`` of queries, or a query's ``proponents``, are needed for evaluation only.

    Args:
        train: Files of training rows, one or several.
        queries: Files of queries, one or several.
        args: Settings of all data modules by place, from ``data_dir`` on: see :class:`FactDataSettings`.
        settings: The same by name.

    Attributes:
        data_path: The folder with ``train.parquet`` and ``queries.parquet``.
    """

    form = FORM

    def __init__(
        self,
        train: Name | list[Name],
        queries: Name | list[Name],
        *args: Any,
        **settings: Any,
    ) -> None:
        shared = FactDataSettings(*args, **settings)  # whose faults are found before any file is read
        self.train_files = _files("train", train)
        self.query_files = _files("queries", queries)
        key = hash_of_files([*self.train_files, *self.query_files], str(len(self.train_files)))
        super().__init__(f"corpus-{key}", shared)

    @override
    def make(self) -> None:
        manifest = whole_manifest(self.data_path, FORM)
        if manifest is None:
            manifest = write_corpus(self.data_path, track(_rows(self.train_files), "rows"), _rows(self.query_files))
        if self.architecture == "encoder-decoder" and manifest["first_row_of_text"]:
            raise ValueError(
                f'{manifest["first_row_of_text"]}: expected "inputs" and "targets", which an encoder-decoder model '
                'needs, found "text" alone. Name them, or take a decoder-only model'
            )
        if self.architecture == "encoder-decoder" and manifest.get("first_row_of_chat"):
            raise ValueError(
                f"{manifest['first_row_of_chat']}: expected texts, which an encoder-decoder model needs, found "
                "messages. Write them as inputs and targets, or take a decoder-only model"
            )
        unproven = manifest["num_queries_without_proponents"]
        which = f"; {unproven:,} of these have no proponents and can't be evaluated" if unproven else ""
        tell(f"{manifest['num_train']:,} training rows, {manifest['num_queries']:,} queries{which}")


def _files(name: str, files: str | Sequence[str]) -> list[Path]:
    paths = [Path(file).absolute() for file in ([files] if isinstance(files, str) else files)]
    if not paths:
        raise ValueError(f"{name}: expected at least one file, found none")
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"{name}: expected files, found none at {', '.join(missing)}")
    return paths


def _rows(files: Sequence[Path]) -> Iterator[SourceRow]:
    for file in files:
        yield from read_rows(file)
