"""Sums of scores by example id, for a data set whose size need not be known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class ScoreAccumulator:
    """Adds up ``[examples, queries]`` contributions as they come; examples get a row when first seen.

    Args:
        kinds: Names of the score kinds to add up.
        num_queries: Q.
        dtype: float32 or float64.
    """

    def __init__(self, kinds: Sequence[str], num_queries: int, dtype: torch.dtype = torch.float32) -> None:
        self._rows: dict[int, int] = {}
        self._sums = {kind: torch.zeros(0, num_queries, dtype=dtype) for kind in kinds}

    def add(self, example_ids: Tensor, contributions: dict[str, Tensor]) -> None:
        """Add each example's contributions; an id that occurs twice is added twice.

        Args:
            example_ids: ``[B]`` int64.
            contributions: For each kind, ``[B, Q]``.
        """
        rows = torch.tensor([self._rows.setdefault(i, len(self._rows)) for i in example_ids.tolist()])
        for kind, values in contributions.items():
            self._sums[kind] = sums = _grown(self._sums[kind], len(self._rows))
            sums.index_add_(0, rows, values.to(device=sums.device, dtype=sums.dtype))

    def result(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Ids of all examples seen, ascending, ``[N]`` int64, and for each kind the sums ``[N, Q]`` in that order."""
        ids = np.fromiter(self._rows, dtype=np.int64, count=len(self._rows))
        order = np.argsort(ids)
        return ids[order], {kind: sums[: len(ids)].numpy()[order] for kind, sums in self._sums.items()}


def _grown(sums: Tensor, rows: int) -> Tensor:
    """The same sums with room for that many rows, doubled so that growing costs little."""
    if rows <= len(sums):
        return sums
    room = sums.new_zeros(max(rows, 2 * len(sums)), sums.shape[1])
    room[: len(sums)] = sums
    return room
