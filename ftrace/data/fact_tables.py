"""Tables of every fact-tracing data set: rows that state facts, and queries that ask for them.

What evaluates scores, or shows them, reads these and makes no batches. So this imports neither torch nor Lightning.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute

from ftrace.arguments import Count, Name, Positive, Seed, checked
from ftrace.arguments.kinds import Within
from ftrace.data.data_folder import MANIFEST, whole_manifest
from ftrace.data.descriptions import describe_examples, describe_queries
from ftrace.data.fact_keys import FactParts
from ftrace.data.mapped_tables import MappedTables
from ftrace.files.claims import claimed
from ftrace.files.manifests import DIGEST, Form, read_json

TABLES = ("train", "queries")
Architecture = Literal["encoder-decoder", "decoder-only"]


@checked
@dataclass(frozen=True)
class FactDataSettings:
    """Settings that all fact-tracing data modules have.

    Args:
        data_dir: Where the data is kept once it is made, in a folder named by the hash of what it is made from.
        architecture: "encoder-decoder" or "decoder-only", as the model is.
        tokenizer: Name or folder of a pretrained tokenizer; None takes that of the pretrained model that is trained, or
            else learns one token a word from the data.
        split_hyphens: Whether a learned tokenizer makes the parts of a hyphenated word tokens of their own.
        batch_size: Rows of a training batch.
        query_batch_size: Queries of a query batch.
        num_workers: Processes that load training batches.
        num_queries: How many queries to trace, drawn at random; None traces all.
        query_seed: Seed of that draw.
        max_length: How many tokens a row keeps, of each of inputs and targets for an encoder-decoder; None keeps as
            many as the pretrained model takes: the smaller of the tokenizer's ``model_max_length`` and the config's
            ``max_position_embeddings``.

    Raises:
        ValueError: If ``num_queries`` is out of range.
    """

    data_dir: Name = "data_cache"
    architecture: Architecture = "encoder-decoder"
    tokenizer: Name | None = None
    split_hyphens: bool = False
    batch_size: Positive = 128
    query_batch_size: Positive = 128
    num_workers: Count = 0
    num_queries: Positive | None = None
    query_seed: Seed = 0
    max_length: Annotated[int, Within(2)] | None = None


class FactTables:
    """Training rows and queries in a folder, as ``train.parquet`` and ``queries.parquet``.

    Training rows have ``example_id`` (0 to N - 1, in order), ``inputs_pretokenized``, ``targets_pretokenized``,
    ``facts`` (a list of keys), ``name`` if the source names its rows, and ``sentence_id`` if several rows are variants
    of one sentence. Queries have ``query_id``, the same texts, ``fact`` (a key), ``answers`` (the accepted surfaces),
    ``proponent_ids`` (the ids of rows that state the fact, ascending), and ``subject`` (what the fact is about, as the
    text spells it) if the source knows it.

    Args:
        folder_name: Name of the data's folder within ``settings.data_dir``.
        settings: What all data modules have.

    Attributes:
        form: The form of the data's manifest; None if it has none.
        data_path: The data's folder.
        settings: As given.
        train_rows: The training rows, once :meth:`open_tables` has run.
        query_rows: The queries, once :meth:`open_tables` has run.
    """

    form: ClassVar[Form | None] = None
    train_rows: datasets.Dataset
    query_rows: datasets.Dataset

    def __init__(self, folder_name: str, settings: FactDataSettings) -> None:
        super().__init__()
        self.settings = settings
        self.data_path = Path(settings.data_dir).absolute() / folder_name
        self._tables = MappedTables(self.data_path, TABLES)

    @property
    def architecture(self) -> Architecture:
        """Architecture of the models that the batches are for."""
        return self.settings.architecture

    @abstractmethod
    def make(self) -> None:
        """Write the two files to :attr:`data_path`, whole or not at all, unless they are there already."""

    def is_made(self) -> bool:
        """Return whether the files are there already, so that :meth:`make` writes nothing."""
        return self.form is not None and whole_manifest(self.data_path, self.form) is not None

    def make_tables(self) -> None:
        """Make what is missing; one process does it before others open the tables."""
        if self._is_ready():
            self.make()  # writes nothing, so the folder may be one that can't be written to
            self._tables.make()
            return
        with claimed(self.data_path, type(self).__name__, "name another data_dir", wait=True):  # several runs may begin
            self._make_all()

    def _is_ready(self) -> bool:
        """Return whether there is nothing to make, or no way to: then copies of the tables are the user's own."""
        return self.is_made() and (self._tables.are_made() or not os.access(self.data_path, os.W_OK))

    def _make_all(self) -> None:
        self.make()
        self._tables.make()

    def open_tables(self) -> None:
        """Map the tables into memory, with as many queries as the settings ask for.

        Raises:
            ValueError: If they aren't made, or damaged.
        """
        self.train_rows = self._tables.open("train")
        self.query_rows = self._drawn(self._tables.open("queries"))

    def describe(self) -> tuple[pa.Table, pa.Table]:
        """Return what a person reads of the training rows and of the queries, which score stores keep beside scores.

        Returns:
            Tables of ``example_id`` or ``query_id``, ``text``, ``answer`` and more: see
            :mod:`ftrace.data.descriptions`.

        Raises:
            RuntimeError: If :meth:`open_tables` has not run, which :meth:`FactData.setup` does.
        """
        if "train_rows" not in vars(self):
            raise RuntimeError("expected prepare_data() and setup() to have run before texts are asked for")
        return self._described

    @cached_property
    def _described(self) -> tuple[pa.Table, pa.Table]:
        return describe_examples(self.train_rows), describe_queries(self.query_rows)

    def parts_of_fact(self, fact: str) -> FactParts | None:
        """Split a fact's key into relation, subject and object; None if this data's keys don't name them.

        Raises:
            ValueError: If it is not one of this data's keys.
        """
        return None

    def subject_of_query(self, row: Mapping[str, Any]) -> str | None:
        """Return what a query's fact is about, as its text spells it; None if the data don't say.

        Args:
            row: A row of :attr:`query_rows`.
        """
        subject: str | None = row.get("subject")
        return subject

    def answer_forms(self) -> Iterable[Sequence[str]]:
        """Yield, for each answer that is known, all forms in which it counts as the same: those that queries accept."""
        answers: Iterable[Sequence[str]] = self.query_rows["answers"]
        return answers

    @cached_property
    def proponents(self) -> dict[int, np.ndarray]:
        """Ids of each query's ground-truth proponents, ascending, by the query's id."""
        table = self.query_rows.with_format("arrow")[:]
        of_queries = table["proponent_ids"].combine_chunks()
        ends = np.cumsum(of_queries.value_lengths().to_numpy())
        flat = of_queries.flatten().to_numpy().astype(np.int64, copy=False)
        return dict(zip(table["query_id"].to_pylist(), np.split(flat, ends[:-1]), strict=True))

    @cached_property
    def sentence_ids(self) -> np.ndarray | None:
        """Sentence that each training row is a variant of, int64 ``[N]``; None if no two rows are variants of one."""
        if "sentence_id" not in self.train_rows.column_names:
            return None
        ids: np.ndarray = self.train_rows.with_format("arrow")[:]["sentence_id"].to_numpy()
        return ids

    @cached_property
    def has_several_answers(self) -> bool:
        """Whether some training row masks several entities, and so has an answer that another sentinel follows."""
        targets = self.train_rows.select_columns(["targets_pretokenized"]).with_format("arrow")[:][0]
        counts = (pyarrow.compute.count_substring(part, "<extra_id_") for part in targets.iterchunks())
        return any((pyarrow.compute.max(count).as_py() or 0) > 1 for count in counts)

    @cached_property
    def fingerprint(self) -> str:
        """Hash that tells this data from other data, whatever folder it is in: 16 hexadecimal digits.

        It covers the folder's name, which has a hash of the settings or of the source files, its manifest without
        versions of software, and its files' sizes. Digests would tell versions of pyarrow apart, too.
        """
        manifest = self.data_path / MANIFEST
        described = read_json(manifest, dict[str, Any], digest=False) if manifest.exists() else {}
        described.pop("versions", None)
        if described.pop(DIGEST, None):
            described.pop("files", None)
            described["version"] = 1  # the data are those of the version that noted no digests
        sizes = [(self.data_path / name).stat().st_size for name in ("train.parquet", "queries.parquet")]
        return hashlib.sha256(json.dumps([self.data_path.name, described, *sizes]).encode()).hexdigest()[:16]

    def _drawn(self, queries: datasets.Dataset) -> datasets.Dataset:
        """Draw as many queries as the settings ask for, in their order."""
        number = self.settings.num_queries
        if number is None or number >= len(queries):
            return queries
        drawn = np.random.default_rng(self.settings.query_seed).choice(len(queries), number, replace=False)
        return queries.select(np.sort(drawn))
