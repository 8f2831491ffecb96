"""FTRACE-TREX on disk, with an index of which rows state which fact.

train.parquet      example_id, inputs_pretokenized, targets_pretokenized, name, sentence_id, facts
queries.parquet    query_id, inputs_pretokenized, targets_pretokenized, uuid, predicate, subject, fact, answers,
                   proponent_ids
manifest.json      counts, and what was left out; size and digest of the Parquet files
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ftrace.data.data_folder import MANIFEST, DataFacts
from ftrace.data.fact_index import FactIndex
from ftrace.data.row_files import SourceRow, write_rows
from ftrace.data.schemas import TEXT, query_schema
from ftrace.data.text import fill_in, split_sentinel
from ftrace.files.digests import facts_of_files
from ftrace.files.manifests import Form, write_manifest
from ftrace.files.whole_files import whole_folder
from ftrace.progress import track


class TrexFacts(DataFacts):
    """The manifest of FTRACE-TREX, as far as readers rely on it."""

    num_queries_without_proponents: int


FORM = Form("ftrace-trex", 2, TrexFacts, "a folder of FTRACE-TREX")

ROWS_PER_BATCH = 100_000

_ROW_SCHEMA = pa.schema([("example_id", pa.int64()), *TEXT, ("name", pa.string()), ("sentence_id", pa.int64())])
TRAIN_SCHEMA = _ROW_SCHEMA.append(pa.field("facts", pa.list_(pa.string())))
QUERY_SCHEMA = query_schema("uuid", "predicate", "subject")
_FACT = re.compile(r"[^,;\s]+,[^,;\s]+,[^,;\s]+")
_MASK = "<extra_id_0>"
_SURFACES = ("obj_surface", "sub_surface")


def write_trex(
    folder: Path,
    abstracts: Iterable[SourceRow],
    queries: Iterable[SourceRow],
    source: str,
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """Index FTRACE-TREX into a folder, whole or not at all.

    Memory holds an index of numbers, the names of rows and a hash of each sentence, not the rows.

    Args:
        folder: Replaced if it exists.
        abstracts: The masked sentences, as published: ``inputs_pretokenized``, ``targets_pretokenized``, ``page_uri``,
            ``facts`` and ``id``; other fields are not read.
        queries: The queries, as published.
        source: Name of their source, for the manifest.
        progress: Show a progress bar.

    Returns:
        The manifest.

    Raises:
        ValueError: If a row is malformed, ids occur twice, there are no rows, or no query's fact is stated.
    """
    with whole_folder(folder) as temporary:
        reader = _Abstracts()
        rows = reader.rows(track(abstracts, "Indexing abstracts") if progress else abstracts)
        num_train = write_rows(temporary / "rows.parquet", _ROW_SCHEMA, rows)
        reader.check(source)
        num_completed = _add_facts(temporary / "rows.parquet", temporary / "train.parquet", reader)
        (temporary / "rows.parquet").unlink()
        lookup = _Queries(reader.index)
        num_queries = write_rows(temporary / "queries.parquet", QUERY_SCHEMA, lookup.rows(queries))
        if not num_queries:
            raise ValueError(
                f"{source}: expected queries whose facts are stated, found {lookup.without_proponents} queries and none"
            )
        manifest = {
            "source": source,
            "num_train": num_train,
            "num_sentences": reader.index.num_sentences,
            "num_facts": reader.index.num_facts,
            "num_rows_with_facts_of_other_variants": num_completed,
            "num_queries": num_queries,
            "num_queries_without_proponents": lookup.without_proponents,
            "num_queries_with_a_repeated_uuid": lookup.repeated,
            "num_queries_with_an_answer_of_another_surface": lookup.other_surface,
            "proponents": lookup.statistics(),
            "versions": {"ftrace": version("ftrace"), "pyarrow": version("pyarrow")},
            "files": facts_of_files(temporary),
        }
        write_manifest(temporary / MANIFEST, FORM, manifest)
    return manifest


class _Abstracts:
    """Reader of the masked sentences, which indexes their facts."""

    def __init__(self) -> None:
        self.index = FactIndex()
        self._sentences: dict[bytes, int] = {}
        self._names: set[str] = set()
        self._repeated: list[str] = []

    def rows(self, abstracts: Iterable[SourceRow]) -> Iterator[dict[str, Any]]:
        """Yield the training rows without their facts, which are only complete at the end."""
        for example_id, row in enumerate(abstracts):
            inputs, targets = _masked_text(row)
            name = row.text("id")
            if name in self._names:
                self._repeated.append(f"{name!r} ({row.place})")
            self._names.add(name)
            sentence = self._sentences.setdefault(_sentence_key(row, inputs, targets), len(self._sentences))
            self.index.add(sentence, _facts(row))
            yield {
                "example_id": example_id,
                "inputs_pretokenized": inputs,
                "targets_pretokenized": targets,
                "name": name,
                "sentence_id": sentence,
            }

    def check(self, source: str) -> None:
        """Refuse ids that occur twice, and an empty source."""
        if self._repeated:
            more = f" and {len(self._repeated) - 5} more" if len(self._repeated) > 5 else ""
            raise ValueError(f"{source}: expected each id once, found again {', '.join(self._repeated[:5])}{more}")
        if not self._names:
            raise ValueError(f"{source}: expected abstracts, found none")


class _Queries:
    """Reader of the queries, which looks their facts up in the index."""

    def __init__(self, index: FactIndex) -> None:
        self.without_proponents = 0
        self.repeated = 0
        self.other_surface = 0
        self._index = index
        self._counts: list[int] = []

    def rows(self, queries: Iterable[SourceRow]) -> Iterator[dict[str, Any]]:
        """Yield the queries whose facts are stated."""
        seen: set[str] = set()
        for row in queries:
            inputs, targets = _masked_text(row)
            predicate, *others = (_part(row, name) for name in ("predicate_id", "obj_uri", "sub_uri"))
            fact = ",".join([predicate, *others])
            uuid, answers = row.text("uuid"), _answers(row, targets)
            self.repeated += uuid in seen
            seen.add(uuid)
            proponents = self._index.rows_stating(fact)
            if not len(proponents):
                self.without_proponents += 1
                continue
            self.other_surface += not answers.is_known
            yield {
                "query_id": len(self._counts),
                "inputs_pretokenized": inputs,
                "targets_pretokenized": targets,
                "uuid": uuid,
                "predicate": predicate,
                "subject": subject_of_query(row),
                "fact": fact,
                "answers": answers.texts,
                "proponent_ids": proponents,
            }
            self._counts.append(len(proponents))

    def statistics(self) -> dict[str, float]:
        """Return mean, median and maximum of the number of proponents per query."""
        counts = np.array(self._counts)
        return {"mean": round(float(counts.mean()), 2), "median": float(np.median(counts)), "most": int(counts.max())}


def _add_facts(rows: Path, file: Path, reader: _Abstracts) -> int:
    """Write the rows with all facts of their sentences; return how many rows didn't list all of them themselves."""
    start = completed = 0
    with pq.ParquetFile(rows.absolute()) as source, pq.ParquetWriter(file, TRAIN_SCHEMA) as writer:
        for batch in source.iter_batches(batch_size=ROWS_PER_BATCH):
            stop = start + len(batch)
            facts = reader.index.facts_of_rows(start, stop)
            completed += int((np.diff(facts.offsets.to_numpy()) > reader.index.num_listed(start, stop)).sum())
            writer.write_table(pa.Table.from_batches([batch]).append_column(TRAIN_SCHEMA.field("facts"), facts))
            start = stop
    return completed


def _masked_text(row: SourceRow) -> tuple[str, str]:
    inputs, targets = row.text("inputs_pretokenized"), row.text("targets_pretokenized")
    if _MASK not in inputs:
        raise row.wrong("inputs_pretokenized", f"a sentence with {_MASK} in it")
    if split_sentinel(targets)[0] != _MASK:
        raise row.wrong("targets_pretokenized", f"{_MASK} and the masked words")
    return inputs, targets


def _sentence_key(row: SourceRow, inputs: str, targets: str) -> bytes:
    """Hash what the variants of one sentence share: the page, and the sentence with the answer filled in.

    No field of the rows would do: ids number rows, and ``example_uris`` names pages, sentences and entities, but only
    of the rows that were masked alike. Words count, not the spaces between them, which masking may have moved. The same
    words on another page are another sentence: who "he" is depends on the page.
    """
    sentence = " ".join(fill_in(inputs, targets).split())
    return hashlib.blake2b(f"{row.text('page_uri')}\n{sentence}".encode(), digest_size=16).digest()


def _facts(row: SourceRow) -> list[str]:
    text = row.text("facts", empty=True).strip()
    facts = text.split(";") if text else []
    if not all(map(_FACT.fullmatch, facts)):
        raise row.wrong("facts", "keys PREDICATE,OBJECT,SUBJECT joined by ;")
    return facts


def _part(row: SourceRow, name: str) -> str:
    part = row.text(name)
    if re.search(r"[,;\s]", part):
        raise row.wrong(name, "one identifier such as Q48")
    return part


class _Answers(NamedTuple):
    """Accepted surfaces of a query's answer, and whether its object or its subject has them."""

    texts: list[str]
    is_known: bool


def _answers(row: SourceRow, targets: str) -> _Answers:
    """Return the target's own text, and the masked entity's surface, if it is spelled differently."""
    answer = split_sentinel(targets)[1].strip()
    for name in _SURFACES:
        surface = row.text(name, empty=True).strip()
        if surface.casefold() == answer.casefold():
            return _Answers(list(dict.fromkeys([answer, surface])), True)
    return _Answers([answer], False)


def subject_of_query(row: SourceRow) -> str | None:
    """Return what a published query's fact is about: the one of object and subject that is not masked.

    Returns:
        The entity in the text's spelling; None if the text doesn't have it, or has both.

    Raises:
        ValueError: If the row is malformed.
    """
    inputs, targets = _masked_text(row)
    masked = [surface.casefold() for surface in _answers(row, targets).texts]
    surfaces = [row.text(name, empty=True).strip() if name in row.fields else "" for name in _SURFACES]
    # Both may be spelled like the answer, as a town and its state are: then only one of them is masked.
    others = [surface for surface in surfaces if surface.casefold() not in masked] or surfaces[:1]
    subjects = {spelled for other in others if (spelled := _spelled(other, inputs))}
    return subjects.pop() if len(subjects) == 1 else None


def _spelled(words: str, text: str) -> str | None:
    """Return words in a text's spelling, found whatever the case of letters; None if the text doesn't have them."""
    if not words or words in text:
        return words or None
    match = re.search(re.escape(words), text, re.IGNORECASE)
    return match.group() if match else None
