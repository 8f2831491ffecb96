"""A set of ids that takes eight bytes for each."""

from __future__ import annotations

import numpy as np


class SortedIds:
    """A set of ids, eight bytes each, in sorted arrays.

    Each array is at least twice as long as the next, so that adding is cheap.
    """

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def contain(self, ids: np.ndarray) -> np.ndarray:
        """Tell which of some ids, ``[B]`` in ascending order, are in the set, ``[B]`` bool."""
        is_known = np.zeros(len(ids), dtype=bool)
        for array in self._arrays:
            indices = np.minimum(np.searchsorted(array, ids), len(array) - 1)
            is_known |= array[indices] == ids
        return is_known

    def add(self, ids: np.ndarray) -> None:
        """Add ids, ``[B]`` in ascending order."""
        if len(ids):
            self._arrays.append(ids)
        while len(self._arrays) > 1 and len(self._arrays[-2]) < 2 * len(self._arrays[-1]):
            last = self._arrays.pop()
            self._arrays[-1] = np.sort(np.concatenate([self._arrays[-1], last]), kind="stable")
