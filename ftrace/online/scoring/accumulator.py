"""Sums of scores by example id, for a data set whose size need not be known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

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

    Raises:
        ValueError: If ``candidates`` names an example twice, or leaves out a query.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        query_ids: Sequence[int],
        dtype: torch.dtype = torch.float32,
        candidates: Candidates = None,
    ) -> None:
        self.query_ids: list[int] = []
        self.dtype = dtype
        self.candidates = candidates
        self._rows: dict[int, int] = {}
        self._sums: dict[Sum, Tensor] = {}
        self._slots: dict[int, tuple[list[int], list[int]]] = {}
        self._pairs: list[int] = []
        self.add_queries(query_ids)
        if candidates is not None and not isinstance(candidates, Mapping):
            self._rows = {int(example): row for row, example in enumerate(candidates)}
            if len(self._rows) < len(candidates):
                raise ValueError("candidates: expected each example id once, found some several times")
        for kind in kinds:
            self._sums[Sum(kind)] = self._zeros()

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
        for key, sums in self._sums.items():
            room = self._zeros(len(sums))
            room[tuple(map(slice, sums.shape))] = sums
            self._sums[key] = room

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

    def _zeros(self, rows: int = 0) -> Tensor:
        if self.is_ragged:
            return torch.zeros(len(self._pairs), dtype=self.dtype)
        return torch.zeros(rows, len(self.query_ids), dtype=self.dtype)

    def add(self, example_ids: Tensor, contributions: Mapping[Sum, Tensor]) -> None:
        """Add each example's contributions; an id that occurs twice is added twice.

        Args:
            example_ids: ``[B]`` int64.
            contributions: For each matrix of sums, ``[B, Q]``.
        """
        targets = self._ragged_targets(example_ids) if self.is_ragged else self._targets(example_ids)
        for key, values in contributions.items():
            sums = self._sums[key] if key in self._sums else self._zeros()
            if not self.is_ragged:
                sums = _grown(sums, len(self._rows))
            self._sums[key] = sums
            moved = values.to(device=sums.device, dtype=sums.dtype)
            if self.is_ragged:
                examples, columns, slots = targets
                sums.index_add_(0, slots, moved[examples, columns])
            else:
                examples, rows = targets[0], targets[1]
                sums.index_add_(0, rows, moved[examples])

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

    def arrays(self) -> tuple[np.ndarray, dict[Sum, np.ndarray]]:
        """Return the examples' ids, ascending ``[N]`` int64, and for each matrix the sums ``[N, Q]`` in that order.

        If each query has candidates of its own: the candidates' ids ``[pairs]``, query by query, and for each matrix
        the sums ``[pairs]``.
        """
        if self.is_ragged:
            return np.array(self._pairs, dtype=np.int64), {key: sums.numpy() for key, sums in self._sums.items()}
        ids = np.fromiter(self._rows, dtype=np.int64, count=len(self._rows))
        order = np.argsort(ids)
        return ids[order], {key: _grown(sums, len(ids))[: len(ids)].numpy()[order] for key, sums in self._sums.items()}

    def state(self) -> dict[str, Any]:
        """Return everything but the settings, as numbers, strings and tensors."""
        ids, arrays = self.arrays()
        return {
            "ids": torch.from_numpy(ids),
            "query_ids": list(self.query_ids),
            "sums": [[*key, torch.from_numpy(np.array(values, order="C"))] for key, values in arrays.items()],
        }

    def add_state(self, state: Mapping[str, Any]) -> None:
        """Add the sums of another accumulator that has the same settings and queries."""
        sums = {Sum(kind, axis, part): values for kind, axis, part, values in state["sums"]}
        if self.is_ragged:
            for key, values in sums.items():
                self._sums[key] = self._sums.get(key, self._zeros()) + values.to(self.dtype)
        else:
            self.add(state["ids"], sums)


def _grown(sums: Tensor, rows: int) -> Tensor:
    """Return the sums with room for at least that many rows, doubled so that growing is cheap on average."""
    if rows <= len(sums):
        return sums
    room = sums.new_zeros(max(rows, 2 * len(sums)), sums.shape[1])
    room[: len(sums)] = sums
    return room
