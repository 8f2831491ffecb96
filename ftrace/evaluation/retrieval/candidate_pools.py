"""Candidate pools for re-ranking, as in Akyürek et al. 2022, section 4 (arXiv 2205.11482).

A query's pool holds all its ground-truth proponents, the best examples by BM25, examples with the same answer, and
random ones. Every method is then scored on the same pool. (The released code scores BM25 on its own global list, and
takes its best 250; ``PoolSettings(bm25=250)`` does the latter.)

What is drawn for a query depends on the seed and its id alone, not on which other queries are asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from ftrace.data import Bm25Index, answers_in, fill_in
from ftrace.whole_files import whole_file

_ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class PoolSettings:
    """How many candidates come from where.

    Args:
        bm25: The best examples by BM25 over sentences with the answer filled in; the released code takes 250.
        same_target: Examples with the same answer; random ones, if there are more.
        random: Random examples.
        seed: Of what is drawn.
    """

    bm25: int = 100
    same_target: int = 100
    random: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0:
                raise ValueError(f"{name}: expected at least 0, found {value}")

    def __str__(self) -> str:
        return (
            f"all ground-truth proponents, the best {self.bm25} by BM25, {self.same_target} with the same target, "
            f"{self.random} random"
        )


class Rows(Protocol):
    """Training rows, as :class:`datasets.Dataset` holds them."""

    def __len__(self) -> int: ...

    def select_columns(self, column_names: list[str]) -> Any:
        """The same rows with these columns only."""


@dataclass(frozen=True)
class CandidatePools:
    """Each query's candidates.

    Args:
        query_ids: ``[Q]`` int64.
        offsets: ``[Q + 1]`` int64, where each query's candidates begin.
        candidate_ids: ``[pairs]`` int64, ids of examples, query by query and ascending.
        settings: How they were made.
    """

    query_ids: np.ndarray
    offsets: np.ndarray
    candidate_ids: np.ndarray
    settings: PoolSettings

    def of(self, query_id: int) -> np.ndarray:
        """The candidates of a query: ids of examples, int64, ascending.

        Raises:
            ValueError: If there is no pool for the query.
        """
        place = self._places.get(query_id)
        if place is None:
            raise ValueError(
                f"no candidate pool for query {query_id}; there are pools for {len(self.query_ids)} others"
            )
        return self.candidate_ids[self.offsets[place] : self.offsets[place + 1]]

    @cached_property
    def example_ids(self) -> np.ndarray:
        """The examples that are in any pool, int64, ascending: what a method must score."""
        return np.unique(self.candidate_ids)

    @cached_property
    def _places(self) -> dict[int, int]:
        return {query: place for place, query in enumerate(self.query_ids.tolist())}

    def write(self, file: Path) -> None:
        """Write a Parquet table of ``query_id`` and ``candidate_ids``, whole or not at all."""
        lists = pa.ListArray.from_arrays(pa.array(self.offsets.astype(np.int32)), pa.array(self.candidate_ids))
        table = pa.table({"query_id": self.query_ids, "candidate_ids": lists})
        table = table.replace_schema_metadata({"settings": json.dumps(asdict(self.settings))})
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as temporary:
            pq.write_table(table, temporary)

    @classmethod
    def open(cls, file: Path) -> CandidatePools:
        """Read what :meth:`write` has written.

        Raises:
            ValueError: If it is missing or damaged.
        """
        try:
            table = pq.read_table(file)
            settings = PoolSettings(**json.loads(table.schema.metadata[b"settings"]))
            lists = table.column("candidate_ids").combine_chunks()
            query_ids = table.column("query_id").to_numpy()
            return cls(query_ids, lists.offsets.to_numpy().astype(np.int64), lists.values.to_numpy(), settings)
        except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
            raise ValueError(f"{file} is missing or holds no candidate pools ({error})") from error


def make_candidate_pools(
    rows: Rows,
    queries: Sequence[Mapping[str, Any]],
    proponents: Mapping[int, np.ndarray],
    settings: PoolSettings = PoolSettings(),
) -> CandidatePools:
    """Make the pools of some queries.

    A row has the same answer if one of the answers in its target is the query's. Its four sources are drawn
    independently, so that a pool may be smaller than their sum.

    Args:
        rows: All training rows, with ``example_id`` (0 to N - 1, in order), ``inputs_pretokenized`` and
            ``targets_pretokenized``.
        queries: The queries' rows, with ``query_id`` and the same texts.
        proponents: For each query's id, the ids of its ground-truth proponents.
        settings: How many candidates come from where.

    Raises:
        ValueError: If there is no query, or a query's pool is empty.
    """
    if not queries:
        raise ValueError("expected at least one query to make a candidate pool for, found none")
    wanted = {answer for query in queries for answer in answers_in(query["targets_pretokenized"])}
    documents, with_answer = _read(rows, wanted, keep_documents=settings.bm25 > 0)
    index = Bm25Index(documents) if settings.bm25 else None
    del documents
    pools = []
    for query in track(queries, "candidate pools"):
        generator = np.random.default_rng([settings.seed, query["query_id"] % 2**63])
        own_answers = answers_in(query["targets_pretokenized"])
        same = np.unique(np.concatenate([with_answer[answer] for answer in own_answers] or [np.zeros(0, np.int64)]))
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
    """All rows' words, and for each wanted answer the rows that have it."""
    documents: list[list[str]] = []
    known: dict[str, str] = {}  # one object a word, not one for each time that it occurs
    with_answer: dict[str, list[int]] = {answer: [] for answer in wanted}
    texts = rows.select_columns(["inputs_pretokenized", "targets_pretokenized"])
    example_id = 0
    for batch in texts.iter(_ROWS_AT_ONCE):
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
