"""The texts of a run's examples and queries: by a function of a batch, in a data set, or as the run's own data says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ftrace.online.loop import TrainingLoop
from ftrace.online.messages import warn
from ftrace.online.queries.query_pass import QueryPass
from ftrace.online.rehearsal.exchange import copied
from ftrace.online.scoring.accumulator import Candidates
from ftrace.online.texts.described_batches import DescribedBatches
from ftrace.online.texts.described_data import DescribedData
from ftrace.scores import EXAMPLE_ID, QUERY_ID, Texts
from ftrace.scores.text_tables import first_rows

_AFTERWARDS = "Give them to the store afterwards: ScoreStore.put_texts(examples, queries)"


class StoreTexts(NamedTuple):
    """Texts of a store; None for those that aren't known.

    Args:
        examples: Of the examples.
        queries: Of the queries.
    """

    examples: Texts | None
    queries: Texts | None


class Descriptions:
    """The texts of one run.

    Args:
        describe: A function ``(batch) -> columns``; a data set of rows; a pair of data sets, of examples and of
            queries, either of which may be None; or None: the data of the loop, if it says texts.
        loop: The training loop.
        who: Whose messages these are.
        id_key: The key of the examples' ids.
        query_id_key: The key of the queries' ids.
        candidates: The examples whose scores are kept.

    Attributes:
        loop: As given.

    Raises:
        ValueError: If ``describe`` is something else, or the first row of a data set has no id or no text.
    """

    def __init__(
        self,
        describe: Any,
        loop: TrainingLoop,
        who: str,
        id_key: str | int = EXAMPLE_ID,
        query_id_key: str | int = QUERY_ID,
        candidates: Candidates = None,
    ) -> None:
        self.loop = loop
        self._who = who
        self._keys = {EXAMPLE_ID: _names(id_key, EXAMPLE_ID), QUERY_ID: _names(query_id_key, QUERY_ID)}
        self._data: list[DescribedData] | None = None  # None: as the loop says
        self._examples: DescribedBatches | None = None
        self._queries: DescribedBatches | None = None
        self._num_query_batches = 0  # those that are described
        if _is_function(describe):
            wanted = candidates
            if isinstance(candidates, Mapping):
                wanted = [example for of_query in candidates.values() for example in of_query]
            assert not isinstance(wanted, Mapping)
            self._examples = DescribedBatches(describe, id_key, "id_key", "examples", who, wanted)
            self._queries = DescribedBatches(describe, query_id_key, "query_id_key", "queries", who)
        elif describe is not None:
            self._data = self._data_sets(describe, f"{who}: describe")
            for data_set in self._data:
                data_set.check()

    def _data_sets(self, given: Any, name: str) -> list[DescribedData]:
        if not (isinstance(given, tuple) and len(given) == 2):
            return [DescribedData(given, self._keys, name)]
        each = zip(given, self._keys.items(), ("examples", "queries"), strict=True)
        return [
            DescribedData(source, {kind: names}, f"{name}, {of}")
            for source, (kind, names), of in each
            if source is not None
        ]

    # While the model trains

    def add_examples(self, batch: Any, names: dict[int, str]) -> None:
        """Describe a batch of examples, if texts come from a function.

        Args:
            batch: The batch.
            names: By id that was made from a name, this name.

        Raises:
            ValueError: If the function fails for the first batch.
        """
        if self._examples is not None:
            self._examples.add(batch, names)

    def add_queries(self, queries: QueryPass) -> None:
        """Describe the batches of queries that are new, if texts come from a function.

        Raises:
            ValueError: If the function fails for the first batch.
        """
        if self._queries is None:
            return
        for batch in queries.batches[self._num_query_batches :]:
            self._queries.add(copied(batch), queries.names)  # it is kept for the next refresh
        self._num_query_batches = len(queries.batches)

    # The store

    def gather(self, *, alone: bool = False) -> dict[str, pa.Table]:
        """Collect the texts that a function has said, on process 0. All processes must call it.

        Args:
            alone: Whether other processes may be gone; then those of this process are all.
        """
        if self._examples is None or self._queries is None:
            return {}
        examples = self._examples.table() if alone else self._examples.gather()
        tables = {EXAMPLE_ID: examples, QUERY_ID: self._queries.table()}  # all processes have all queries
        return {kind: table for kind, table in tables.items() if table is not None}

    def texts(
        self, gathered: Mapping[str, pa.Table], example_ids: np.ndarray, query_ids: np.ndarray | None = None
    ) -> StoreTexts:
        """Return the texts of a store's examples and queries. Whatever fails is a warning: scores are not lost for it.

        Args:
            gathered: What :meth:`gather` returned, on process 0.
            example_ids: ``[N]`` int64.
            query_ids: ``[Q]`` int64; None: texts of queries are not wanted.
        """
        wanted = {EXAMPLE_ID: example_ids, QUERY_ID: np.zeros(0, np.int64) if query_ids is None else query_ids}
        try:
            tables = self._read(gathered, wanted)
            texts = {kind: Texts.of(table, kind, wanted[kind]) for kind, table in tables.items() if len(wanted[kind])}
        except Exception as error:  # a user's data set may raise anything
            warn(f"{self._who}: texts were not written: {type(error).__name__}: {error}. {_AFTERWARDS}")
            return StoreTexts(None, None)
        missed = [kind for kind, of_kind in texts.items() if not len(of_kind)]
        if missed:
            ids = wanted[missed[0]][:3].tolist()
            warn(
                f'{self._who}: describe: expected rows with the ids of the store as "{missed[0]}", such as {ids}, '
                f"found none of them. {_AFTERWARDS}"
            )
        known = {kind: of_kind for kind, of_kind in texts.items() if len(of_kind)}
        return StoreTexts(known.get(EXAMPLE_ID), known.get(QUERY_ID))

    def _read(self, gathered: Mapping[str, pa.Table], wanted: Mapping[str, np.ndarray]) -> dict[str, pa.Table]:
        if self._examples is not None:
            tables = {kind: table.rename_columns({"id": kind}) for kind, table in gathered.items()}
            return {kind: first_rows(table, kind) for kind, table in tables.items()}
        data_sets = self._data
        if data_sets is None:
            described = self.loop.describe()
            data_sets = [] if described is None else self._data_sets(described, "the data module's describe()")
        read: dict[str, pa.Table] = {}
        for data_set in data_sets:
            read |= data_set.read(wanted)
        return read

    # State

    def save(self, folder: Path) -> list[dict[str, str]]:
        """Write what a function has said of examples to files, unless it is in files already.

        Returns:
            Names and hashes of this process's files.
        """
        return [] if self._examples is None else self._examples.save(folder)

    def load(self, entries: Sequence[Mapping[str, str]], fallback: Path) -> None:
        """Take over the texts in some files.

        Args:
            entries: What :meth:`save` returned, of one process or of several.
            fallback: The folder to search if the files aren't where they were written.
        """
        if self._examples is not None:
            self._examples.load(entries, fallback)


def _names(key: str | int, usual: str) -> list[str]:
    return list(dict.fromkeys([key, usual] if isinstance(key, str) else [usual]))  # a place in a batch names no column


def _is_function(describe: Any) -> bool:
    return callable(describe) and not hasattr(describe, "__getitem__")
