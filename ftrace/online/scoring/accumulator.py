"""Sums of scores by example id, for a data set whose size need not be known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftrace.online.scoring.row_blocks import MakeZeros, RowBlocks, blocks_of_state, zeros_in_memory
from ftrace.scores import Sum

Candidates = Sequence[int] | Mapping[int, Sequence[int]] | None


class ScoreAccumulator:
    """Sums of ``[examples, queries]`` contributions by example id. An example gets its row when it is first seen.

    Args:
        kinds: Names of the score kinds to add up.
        query_ids: ``[Q]``.
        dtype: float32 or float64.
        candidates: The examples to keep scores of. None: all of them. A sequence: these. A mapping: for each query its
            own, and memory then grows with their number instead of N x Q.
        make_zeros: Makes the memory of a block of sums.

    Raises:
        ValueError: If ``candidates`` names an example twice, or leaves out a query.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        query_ids: Sequence[int],
        dtype: torch.dtype = torch.float32,
        candidates: Candidates = None,
        make_zeros: MakeZeros = zeros_in_memory,
    ) -> None:
        self.query_ids: list[int] = []
        self.dtype = dtype
        self.candidates = candidates
        self.make_zeros = make_zeros
        self._rows: dict[int, int] = {}
        self._sums: dict[Sum, RowBlocks] = {}
        self._slots: dict[int, tuple[list[int], list[int]]] = {}
        self._pairs: list[int] = []
        self._remembers = False
        self.add_queries(query_ids)
        if candidates is not None and not isinstance(candidates, Mapping):
            self._rows = {int(example): row for row, example in enumerate(candidates)}
            if len(self._rows) < len(candidates):
                raise ValueError("candidates: expected each example id once, found some several times")
        for kind in kinds:
            self._sums_of(Sum(kind))

    @property
    def is_ragged(self) -> bool:
        """Whether each query has candidates of its own."""
        return isinstance(self.candidates, Mapping)

    def add_queries(self, query_ids: Iterable[int]) -> None:
        """Add queries, whose scores are zero so far."""
        new = [int(query) for query in query_ids]
        if isinstance(self.candidates, Mapping):
            self._add_slots(new, self.candidates)
        self.query_ids += new
        for sums in self._sums.values():
            sums.widen(self._row_shape)

    def _add_slots(self, query_ids: list[int], candidates: Mapping[int, Sequence[int]]) -> None:
        missing = [query for query in query_ids if query not in candidates]
        if missing:
            raise ValueError(f"candidates: expected a list for each query, found none for {missing[:3]}")
        for column, query in enumerate(query_ids, start=len(self.query_ids)):
            of_query = [int(example) for example in candidates[query]]
            if len(set(of_query)) < len(of_query):
                raise ValueError(f"candidates: expected each example id once, found some twice for query {query}")
            for example in of_query:
                columns, slots = self._slots.setdefault(example, ([], []))
                columns.append(column)
                slots.append(len(self._pairs))
                self._pairs.append(example)

    @property
    def _row_shape(self) -> tuple[int, ...]:
        return () if self.is_ragged else (len(self.query_ids),)

    def _sums_of(self, key: Sum) -> RowBlocks:
        if key not in self._sums:
            self._sums[key] = RowBlocks(self._row_shape, self.dtype, self.make_zeros)
            if self._remembers:
                self._sums[key].remember()
        return self._sums[key]

    @property
    def keys(self) -> list[Sum]:
        """The matrices of sums."""
        return list(self._sums)

    def __len__(self) -> int:
        """Count the rows of each matrix: examples, or pairs if each query has candidates of its own."""
        return len(self._pairs) if self.is_ragged else len(self._rows)

    def add(self, example_ids: Tensor, contributions: Mapping[Sum, Tensor]) -> None:
        """Add each example's contributions; an id that occurs twice is added twice.

        Args:
            example_ids: ``[B]`` int64.
            contributions: For each matrix of sums, ``[B, Q]``.
        """
        targets = self._ragged_targets(example_ids) if self.is_ragged else self._targets(example_ids)
        for key, values in contributions.items():
            moved = values.to(device="cpu", dtype=self.dtype)
            if self.is_ragged:
                examples, columns, slots = targets
                self._sums_of(key).add(slots, moved[examples, columns])
            else:
                examples, rows = targets[0], targets[1]
                self._sums_of(key).add(rows, moved if len(examples) == len(moved) else moved[examples])

    def _targets(self, example_ids: Tensor) -> tuple[Tensor, ...]:
        """Return which examples of the batch are kept, and the row of each."""
        ids = example_ids.tolist()
        if self.candidates is None:
            rows = [self._rows.setdefault(example, len(self._rows)) for example in ids]
            return torch.arange(len(ids)), torch.tensor(rows, dtype=torch.int64)
        kept = [(index, self._rows[example]) for index, example in enumerate(ids) if example in self._rows]
        return tuple(torch.tensor(kept, dtype=torch.int64).view(-1, 2).unbind(1))

    def _ragged_targets(self, example_ids: Tensor) -> tuple[Tensor, ...]:
        """Return for each pair of the batch that is kept its example, its query's column and its slot in the sums."""
        pairs: list[tuple[int, int, int]] = []
        for index, example in enumerate(example_ids.tolist()):
            columns, slots = self._slots.get(example, ([], []))
            pairs += [(index, column, slot) for column, slot in zip(columns, slots, strict=True)]
        return tuple(torch.tensor(pairs, dtype=torch.int64).view(-1, 3).unbind(1))

    def sorted(self) -> tuple[np.ndarray, dict[Sum, SortedRows]]:
        """Return the examples' ids, ascending ``[N]`` int64, and for each matrix the sums ``[N, Q]`` in that order.

        If each query has candidates of its own: the candidates' ids ``[pairs]``, query by query, and for each matrix
        the sums ``[pairs]``. Sums are copied only when their rows are read.
        """
        if self.is_ragged:
            ids = np.array(self._pairs, dtype=np.int64)
            order = np.arange(len(ids))
        else:
            ids = np.fromiter(self._rows, dtype=np.int64, count=len(self._rows))
            order = np.argsort(ids)
            ids = ids[order]
        return ids, {key: SortedRows(sums, order) for key, sums in self._sums.items()}

    def remember(self) -> None:
        """Let :meth:`state` describe the sums as they are now, whatever is added later."""
        self._remembers = True
        for sums in self._sums.values():
            sums.remember()

    def state(self) -> dict[str, Any]:
        """Return everything but the settings, as numbers, strings and tensors, which are not copied."""
        ids = self._pairs if self.is_ragged else list(self._rows)
        return {
            "ids": torch.tensor(ids, dtype=torch.int64),
            "query_ids": list(self.query_ids),
            "sums": [[*key, sums.state(len(ids))] for key, sums in self._sums.items()],
        }

    def add_state(self, state: Mapping[str, Any]) -> None:
        """Add the sums of another accumulator that has the same settings and queries, a block at a time."""
        for kind, axis, part, of_key in state["sums"]:
            for start, block in blocks_of_state(of_key):
                self.add_rows(Sum(kind, axis, part), state["ids"][start : start + len(block)], block, start)

    def add_rows(self, key: Sum, ids: Tensor, values: Tensor, start: int = 0) -> None:
        """Add rows of another accumulator that has the same settings and queries.

        Args:
            key: The matrix.
            ids: The ids of its rows.
            values: Their sums.
            start: The number of the first row, which says which pairs these are if each query has its own candidates.
        """
        if self.is_ragged:
            self._sums_of(key).add(torch.arange(start, start + len(values)), values.to(self.dtype))
        else:
            self.add(ids, {key: values})


class SortedRows:
    """A matrix of sums in the order of ids; rows are copied when they are read.

    Args:
        sums: The sums.
        order: ``[N]``, the row of the n-th id.
    """

    def __init__(self, sums: RowBlocks, order: np.ndarray) -> None:
        self._sums = sums
        self._order = order
        self.shape = (len(order), *sums.row_shape)
        self.dtype = np.dtype(str(sums.dtype).removeprefix("torch."))

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """Read some rows, ``[n, Q]`` or ``[n]``."""
        return self._sums.take(torch.from_numpy(self._order[rows])).numpy()
