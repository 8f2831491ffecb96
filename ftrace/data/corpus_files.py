"""A user's own corpus on disk, in the form that all fact-tracing data sets have.

train.parquet      example_id, inputs_pretokenized, targets_pretokenized, name, facts; turns, if a row is a chat or a
                   prompt and its completion, of which the texts are what a person reads
queries.parquet    query_id, inputs_pretokenized, targets_pretokenized, name, fact, answers, proponent_ids; subject, if
                   a query has one, and turns, likewise
manifest.json      counts; size and digest of the Parquet files
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
import pyarrow as pa

from ftrace.arguments import checked
from ftrace.data.data_folder import MANIFEST, DataFacts
from ftrace.data.fact_index import FactIndex
from ftrace.data.row_files import SourceRow, read_rows, write_rows
from ftrace.data.schemas import query_schema, train_schema
from ftrace.data.text import split_sentinel
from ftrace.data.turns import FIELDS, TURNS, Turn, as_query, has_turns, is_chat, readable, turns_of
from ftrace.files.digests import facts_of_files
from ftrace.files.manifests import Form, write_manifest
from ftrace.files.whole_files import whole_folder


class CorpusFacts(DataFacts):
    """The manifest of a corpus, as far as readers rely on it."""

    num_queries_without_proponents: int
    first_row_of_text: str | None
    first_row_of_chat: NotRequired[str]


FORM = Form("ftrace-corpus", 2, CorpusFacts, "a folder of a corpus")

TRAIN_SCHEMA = train_schema("name")
_TURNS = pa.field("turns", TURNS)
_PAIRS = (("inputs_pretokenized", "targets_pretokenized"), ("inputs", "targets"))


def write_corpus(folder: Path, train: Iterable[SourceRow], queries: Iterable[SourceRow]) -> dict[str, Any]:
    """Write a user's rows and queries to a folder in the common form, whole or not at all.

    Args:
        folder: Replaced if it exists.
        train: Training rows: ``inputs`` and ``targets`` (or the same with ``_pretokenized``), ``messages``, ``prompt``
            and ``completion``, or ``text``; may have ``id`` and ``facts``.
        queries: Queries, likewise; may have ``id``, ``fact``, ``answers``, ``subject`` and ``proponents``.

    Returns:
        The manifest.

    Raises:
        ValueError: If a row is malformed, an id occurs twice, a proponent is unknown, or there are no rows or queries.
    """
    with whole_folder(folder) as temporary:
        corpus = _Corpus()
        schema = TRAIN_SCHEMA.append(_TURNS)
        num_train = write_rows(temporary / "train.parquet", schema, corpus.rows(train), optional="turns")
        if not num_train:
            raise ValueError("train: expected at least one row, found none")
        query_rows = list(corpus.queries(queries))
        # Data without subjects have no such column, so that their files, and with them the fingerprint, stay the same.
        has_subject = any(query["subject"] is not None for query in query_rows)
        schema = query_schema("name", "subject") if has_subject else query_schema("name")
        schema = schema.append(_TURNS)
        num_queries = write_rows(temporary / "queries.parquet", schema, query_rows, optional="turns")
        if not num_queries:
            raise ValueError("queries: expected at least one query, found none")
        manifest = {
            "num_train": num_train,
            "num_facts": corpus.index.num_facts,
            "num_queries": num_queries,
            "num_queries_without_proponents": corpus.without_proponents,
            "first_row_of_text": corpus.first_text,
            **({} if corpus.first_chat is None else {"first_row_of_chat": corpus.first_chat}),
            "versions": {"ftrace": version("ftrace"), "pyarrow": version("pyarrow")},
            "files": facts_of_files(temporary),
        }
        write_manifest(temporary / MANIFEST, FORM, manifest)
    return manifest


@checked
def read_queries(file: Path) -> list[dict[str, Any]]:
    """Read a user's queries for data whose training rows exist already, in the form that :func:`write_corpus` writes.

    They can't have ``proponents``: the training rows' ids are not known here.

    Raises:
        ValueError: If a row is malformed, an id occurs twice, or there are none.
    """
    queries = list(_Corpus().queries(read_rows(file)))
    if not queries:
        raise ValueError(f"{file}: expected at least one query, found none")
    return queries


class _Corpus:
    """Reader of training rows, then of queries."""

    def __init__(self) -> None:
        self.index = FactIndex()
        self.without_proponents = 0
        self.first_text: str | None = None
        self.first_chat: str | None = None
        self._example_ids: dict[str, int] = {}

    def rows(self, train: Iterable[SourceRow]) -> Iterator[dict[str, Any]]:
        for example_id, row in enumerate(train):
            inputs, targets, turns = self._texts(row)
            name = _name(row, example_id, self._example_ids)
            self._example_ids[name] = example_id
            facts = row.texts("facts")
            self.index.add(example_id, facts)
            yield {
                "example_id": example_id,
                "inputs_pretokenized": inputs,
                "targets_pretokenized": targets,
                "name": name,
                "facts": facts,
                "turns": turns,
            }

    def queries(self, queries: Iterable[SourceRow]) -> Iterator[dict[str, Any]]:
        names: dict[str, int] = {}
        for query_id, row in enumerate(queries):
            inputs, targets, turns = self._texts(row)
            name = _name(row, query_id, names)
            names[name] = query_id
            fact = row.text("fact") if "fact" in row.fields else None
            proponents = self._proponents(row, fact)
            self.without_proponents += not len(proponents)
            yield {
                "query_id": query_id,
                "inputs_pretokenized": inputs,
                "targets_pretokenized": targets,
                "name": name,
                "fact": fact,
                "answers": row.texts("answers") or [split_sentinel(targets)[1].strip()],
                "proponent_ids": proponents,
                "subject": row.text("subject", empty=True) if "subject" in row.fields else None,
                "turns": None if turns is None else as_query(turns),
            }

    def _texts(self, row: SourceRow) -> tuple[str, str, list[Turn] | None]:
        """Return what a row gives, what it has learned, and its turns, if it has any."""
        turns = row.fields.get("turns")  # of data that we have made, whose texts are there too
        has_texts = any(name in row.fields for name in ("text", *itertools.chain(*_PAIRS)))
        if turns is None and has_turns(row, alone=not has_texts):
            turns = turns_of(row)
        if turns is not None:
            if is_chat(turns):
                self.first_chat = self.first_chat or row.place
            return *readable(turns), turns
        for inputs, targets in _PAIRS:
            if inputs in row.fields or targets in row.fields:
                return row.text(inputs, empty=True), row.text(targets), None
        if "text" in row.fields:
            self.first_text = self.first_text or row.place
            return "", row.text("text"), None
        raise ValueError(
            f'{row.place}: expected the fields "inputs" and "targets", "messages", "prompt" and "completion", or "text"'
            f", {row.found('inputs', 'targets', 'text', *FIELDS)}"
        )

    def _proponents(self, row: SourceRow, fact: str | None) -> np.ndarray:
        """Return the ids of the rows that the query names, or else of those that state its fact."""
        if "proponents" not in row.fields:
            return self.index.rows_stating(fact) if fact is not None else np.empty(0, dtype=np.int64)
        names = row.texts("proponents", empty=True)
        unknown = [name for name in names if name not in self._example_ids]
        if unknown:
            raise row.wrong("proponents", f"ids of training rows, {unknown[0]!r} is none")
        return np.unique([self._example_ids[name] for name in names]).astype(np.int64)


def _name(row: SourceRow, number: int, known: dict[str, int]) -> str:
    """Return the row's id, or its number if it has none."""
    name = row.text("id") if "id" in row.fields else str(number)
    if name in known:
        other = f"that row {known[name]} (from 0) has too"
        raise row.wrong("id", f"an id of its own, not {name!r}, {other}")
    return name
