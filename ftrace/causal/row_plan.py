"""Which row of a growing batch is which cell with which noise, and what is done to it where.

Row 0 is the clean run, rows 1 to N are the corrupted ones, and each cell has N rows from its birth on.
Shape letters: N noise samples, R rows, C cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ftrace.causal.mediators import Cell, Module


class Birth(NamedTuple):
    """The cells that are born at one layer's input.

    Args:
        cells: How many.
        rows: Rows whose state is set to the clean one, counted among the new ones.
        places: At which place each.
    """

    cells: int
    rows: Tensor
    places: Tensor


class Replacement(NamedTuple):
    """Rows whose outputs at a place are those of other rows of the same batch.

    Args:
        rows: The rows.
        places: The place of each.
        sources: The row that each is taken from.
    """

    rows: Tensor
    places: Tensor
    sources: Tensor


class RowPlan:
    """The rows of a forward pass in which rows grow.

    Args:
        cells: The cells, in any order.
        samples: How many noise samples.
        offset: The place that is the first in the batch: those before it come from a cache.
        device: Where the model is.
    """

    def __init__(
        self, cells: Sequence[Cell], samples: int, offset: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.samples = samples
        self.device = device
        self._order = sorted(range(len(cells)), key=lambda place: cells[place].birth)
        self._cells = [cells[place] for place in self._order]
        self._births = np.array([cell.birth for cell in self._cells], np.int64)
        self._places = np.array([cell.place - offset for cell in self._cells], np.int64)
        self._restores = np.array([cell.restores_state for cell in self._cells], bool)
        self.birth_at = cache(self._birth_at)
        self.replaced_at = cache(self._replaced_at)

    @property
    def num_rows(self) -> int:
        """How many rows there are in the end."""
        return 1 + self.samples * (1 + len(self._cells))

    def of_cells(self, values: Tensor) -> Tensor:
        """From values of all rows ``[R, ...]`` to those of the cells, in the order in which they were given.

        Returns:
            ``[C, N, ...]``.
        """
        of_rows = values[1 + self.samples :].reshape(len(self._cells), self.samples, *values.shape[1:])
        found = torch.empty_like(of_rows)
        found[torch.tensor(self._order, dtype=torch.int64, device=values.device)] = of_rows
        return found

    def noise_of_rows(self, count: int) -> Tensor:
        """For the first ``count`` rows, the row of the run with the same noise: 0 for the clean one, else 1 to N."""
        found = torch.arange(count, device=self.device) - 1
        return torch.where(found < 0, 0, found % self.samples + 1)

    def _birth_at(self, layer: int) -> Birth:
        """What is born at a layer's input; at the number of layers: after the last."""
        born = np.flatnonzero(self._births == layer)
        restored = np.flatnonzero(self._restores[born])
        return Birth(len(born), self._rows(restored), self._repeated(self._places[born][restored]))

    def _replaced_at(self, module: Module, layer: int) -> Replacement | None:
        """Whose outputs of a module are replaced in a layer."""
        found: dict[str, list[int]] = {"clean": [], "corrupted": []}
        for index, cell in enumerate(self._cells):
            for override in cell.overrides:
                if override.module == module and override.first <= layer < override.stop:
                    found[override.source].append(index)
        if not any(found.values()):
            return None
        first = 1 + self.samples
        clean, corrupted = (np.array(found[source], np.int64) for source in ("clean", "corrupted"))
        samples = torch.arange(1, first, device=self.device)
        zeros = torch.zeros(len(clean) * self.samples, dtype=torch.int64, device=self.device)
        return Replacement(
            torch.cat([self._rows(clean), self._rows(corrupted)]) + first,
            self._repeated(self._places[np.concatenate([clean, corrupted])]),
            torch.cat([zeros, samples.repeat(len(corrupted))]),
        )

    def _rows(self, cells: np.ndarray) -> Tensor:
        """All rows of some cells, counted from the first cell's first row."""
        rows = cells[:, None] * self.samples + np.arange(self.samples)
        return torch.from_numpy(rows.ravel().astype(np.int64)).to(self.device)

    def _repeated(self, places: np.ndarray) -> Tensor:
        return torch.from_numpy(places.astype(np.int64)).repeat_interleave(self.samples).to(self.device)
