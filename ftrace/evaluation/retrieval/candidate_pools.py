"""Candidate pools for re-ranking, as in Akyürek et al. 2022, section 4 (arXiv 2205.11482).

A query's pool contains all its ground-truth proponents, the best examples by BM25, examples with the same answer, and
random ones. Every method is then evaluated on the same pool. (The released code evaluates BM25 on a global list of its
own, and takes its best 250; ``PoolSettings(bm25=250)`` does the latter.)

The examples drawn for a query depend only on the seed and its id, not on which other queries are evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ftrace.arguments import Count, Name, Seed, checked
from ftrace.data import answers_in, fill_in
from ftrace.files.content_digests import digest_of_parts
from ftrace.files.digests import DamagedError
from ftrace.files.whole_files import whole_file
from ftrace.progress import track
from ftrace.shown_text import one_line

_ROWS_AT_ONCE = 10_000


@checked
@dataclass(frozen=True)
class PoolSettings:
    """Number of candidates from each source.

    Args:
        bm25: Number of the best examples by BM25 over sentences with the answer filled in; the released code takes 250.
        same_target: Number of examples with the same answer; random ones, if there are more.
        random: Number of random examples.
        seed: Seed of all random draws.
    """

    bm25: Count = 100
    same_target: Count = 100
    random: Count = 100
    seed: Seed = 0

    def __str__(self) -> str:
        return (
            f"all ground-truth proponents, the best {self.bm25} by BM25, {self.same_target} with the same target, "
            f"{self.random} random"
        )


class Rows(Protocol):
    """Training rows, with the interface of :class:`datasets.Dataset`."""

    def __len__(self) -> int: ...

    def select_columns(self, column_names: list[str]) -> Any:
        """Keep only these columns."""


@dataclass(frozen=True)
class CandidatePools:
    """Each query's candidates.

    Args:
        query_ids: ``[Q]`` int64.
        offsets: ``[Q + 1]`` int64, the index at which each query's candidates begin.
        candidate_ids: ``[pairs]`` int64, ids of examples, query by query and ascending.
        settings: The settings they were made with.
    """

    query_ids: np.ndarray
    offsets: np.ndarray
    candidate_ids: np.ndarray
    settings: PoolSettings

    def of(self, query_id: int) -> np.ndarray:
        """Return the candidates of a query: ids of examples, int64, ascending.

        Raises:
            ValueError: If there is no pool for the query.
        """
        index = self._indices.get(query_id)
        if index is None:
            raise ValueError(
                f"no candidate pool for query {query_id}; there are pools for {len(self.query_ids)} others"
            )
        return self.candidate_ids[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def example_ids(self) -> np.ndarray:
        """The examples that are in any pool, int64, ascending: those that a method must score."""
        return np.unique(self.candidate_ids)

    @cached_property
    def _indices(self) -> dict[int, int]:
        return {query: index for index, query in enumerate(self.query_ids.tolist())}

    def write(self, file: Path) -> None:
        """Write a Parquet table of ``query_id`` and ``candidate_ids``, whole or not at all."""
        lists = pa.ListArray.from_arrays(pa.array(self.offsets.astype(np.int32)), pa.array(self.candidate_ids))
        table = pa.table({"query_id": self.query_ids, "candidate_ids": lists})
        settings = json.dumps(asdict(self.settings))
        table = table.replace_schema_metadata({"settings": settings, "digest": self._digest(settings)})
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as temporary:
            pq.write_table(table, temporary)

    @classmethod
    def open(cls, file: Path) -> CandidatePools:
        """Read pools written by :meth:`write`.

        Raises:
            ValueError: If it is missing or damaged.
        """
        try:
            table = pq.read_table(file.absolute())  # a relative one with a colon is taken for a URI
            text = (table.schema.metadata or {})[b"settings"]
            settings = msgspec.json.decode(text, type=PoolSettings)
            lists = table.column("candidate_ids").combine_chunks()
            query_ids = table.column("query_id").to_numpy()
            pools = cls(query_ids, lists.offsets.to_numpy().astype(np.int64), lists.values.to_numpy(), settings)
            if (table.schema.metadata or {})[b"digest"].decode("ascii") != pools._digest(text):
                raise DamagedError("its digest is not that of its content")
            return pools
        except (OSError, KeyError, AttributeError, TypeError, ValueError, pa.ArrowException) as error:
            raise DamagedError(
                f"{str(file)!r} is missing or holds no candidate pools ({one_line(str(error))})"
            ) from error

    def _digest(self, settings: str | bytes) -> str:
        arrays = (self.query_ids, self.offsets, self.candidate_ids)
        return digest_of_parts([settings, *(np.asarray(array, np.int64).tobytes() for array in arrays)])


@checked
def make_candidate_pools(
    rows: Rows,
    queries: Sequence[Mapping[Name, Any]],
    proponents: Mapping[int, np.ndarray],
    settings: PoolSettings = PoolSettings(),
) -> CandidatePools:
    """Make the candidate pools of some queries.

    A row has the same answer if one of the answers in its target is the query's. The sources of a pool are drawn
    independently and may overlap, so a pool may be smaller than their sum.

    Args:
        rows: All training rows, with ``example_id`` (0 to N - 1, in order), ``inputs_pretokenized`` and
            ``targets_pretokenized``.
        queries: The queries' rows, with ``query_id`` and the same texts.
        proponents: For each query's id, the ids of its ground-truth proponents.
        settings: Number of candidates from each source.

    Raises:
        ValueError: If there is no query, or a query's pool is empty.
    """
    if not queries:
        raise ValueError("expected at least one query to make a candidate pool for, found none")
    wanted = {answer for query in queries for answer in answers_in(query["targets_pretokenized"])}
    documents, with_answer = _read(rows, wanted, keep_documents=settings.bm25 > 0)
    from ftrace.data import Bm25Index  # imports bm25s

    index = Bm25Index(documents) if settings.bm25 else None
    del documents
    pools = []
    for query in track(queries, "candidate pools"):
        generator = np.random.default_rng([settings.seed, query["query_id"] % 2**63])
        answers = answers_in(query["targets_pretokenized"])
        same = np.unique(np.concatenate([with_answer[answer] for answer in answers] or [np.zeros(0, np.int64)]))
        sources = [
            np.asarray(proponents[query["query_id"]], dtype=np.int64),
            _draw(generator, same, settings.same_target),
            generator.choice(len(rows), size=min(settings.random, len(rows)), replace=False),
        ]
        if index is not None:
            sources.append(
                index.top(_words(query["inputs_pretokenized"], query["targets_pretokenized"]), settings.bm25)
            )
        pool = np.unique(np.concatenate(sources)).astype(np.int64)
        if not len(pool):
            raise ValueError(
                f"query {query['query_id']}: expected at least one candidate, but its pool is empty. It has no "
                f"ground-truth proponents, and nothing is drawn for it: {settings}"
            )
        pools.append(pool)
    query_ids = np.array([query["query_id"] for query in queries], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(pool) for pool in pools])]).astype(np.int64)
    return CandidatePools(query_ids, offsets, np.concatenate(pools), settings)


def _read(rows: Rows, wanted: set[str], *, keep_documents: bool) -> tuple[list[list[str]], dict[str, np.ndarray]]:
    """Read all rows' words, if they are to be kept, and find the rows that have each wanted answer."""
    documents: list[list[str]] = []
    known: dict[str, str] = {}  # so that equal words are one object
    with_answer: dict[str, list[int]] = {answer: [] for answer in wanted}
    texts = rows.select_columns(["inputs_pretokenized", "targets_pretokenized"])
    example_id = 0
    for batch in track(texts.iter(_ROWS_AT_ONCE), "batches of rows", -(-len(rows) // _ROWS_AT_ONCE)):
        for inputs, targets in zip(batch["inputs_pretokenized"], batch["targets_pretokenized"], strict=True):
            for answer in answers_in(targets):
                if answer in with_answer:
                    with_answer[answer].append(example_id)
            if keep_documents:
                documents.append([known.setdefault(word, word) for word in _words(inputs, targets)])
            example_id += 1
    return documents, {answer: np.array(ids, dtype=np.int64) for answer, ids in with_answer.items()}


def _words(inputs: str, targets: str) -> list[str]:
    return fill_in(inputs, targets).split(" ")


def _draw(generator: np.random.Generator, ids: np.ndarray, count: int) -> np.ndarray:
    return generator.choice(ids, size=count, replace=False) if len(ids) > count else ids
