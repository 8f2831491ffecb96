"""The memory of a ledger's numbers."""

from __future__ import annotations

import numpy as np


class NumberMemory:
    """The memory of arrays that stay until training ends: scattered ones would keep the memory around them in use."""

    NUMBERS = 2**22  # so large a block has pages of its own, which are taken as they are written

    def __init__(self) -> None:
        self._block = np.empty(0)
        self._used = 0

    def keep(self, values: np.ndarray) -> np.ndarray:
        """Copy numbers, ``[n]`` float64."""
        if self._used + len(values) > len(self._block):
            self._block, self._used = np.zeros(max(self.NUMBERS, len(values))), 0
        kept = self._block[self._used : self._used + len(values)]
        kept[:] = values
        self._used += len(values)
        return kept
