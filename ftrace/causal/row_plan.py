"""A plan of the rows of a growing batch: each row's cell and noise, and what is replaced in it in which layer.

Row 0 is the clean run, rows 1 to N are the corrupted runs, and each cell has N rows from its birth on.
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
        cells: How many cells.
        rows: Rows whose state is set to the clean one, numbered among the new rows.
        positions: The position in each of these rows.
    """

    cells: int
    rows: Tensor
    positions: Tensor


class Replacement(NamedTuple):
    """Rows whose outputs at one position are replaced by those of other rows of the same batch.

    Args:
        positions: The position in each row.
        sources: For each row, the row that its output is taken from.
    """

    rows: Tensor
    positions: Tensor
    sources: Tensor


class RowPlan:
    """The rows of a forward pass in which the batch grows.

    Args:
        cells: The cells, in any order.
        samples: The number of noise samples.
        offset: The first position in the batch; earlier ones come from a cache.
        device: The model's device.
    """

    def __init__(
        self, cells: Sequence[Cell], samples: int, offset: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.samples = samples
        self.device = device
        self._order = sorted(range(len(cells)), key=lambda index: cells[index].birth)
        self._cells = [cells[index] for index in self._order]
        self._births = np.array([cell.birth for cell in self._cells], np.int64)
        self._positions = np.array([cell.position - offset for cell in self._cells], np.int64)
        self._restores = np.array([cell.restores_state for cell in self._cells], bool)
        self.birth_at = cache(self._birth_at)
        self.replaced_at = cache(self._replaced_at)

    @property
    def num_rows(self) -> int:
        """How many rows there are after the last layer."""
        return 1 + self.samples * (1 + len(self._cells))

    def of_cells(self, values: Tensor) -> Tensor:
        """Select the cells' values from those of all rows ``[R, ...]``, in the order in which cells were given.

        Returns:
            ``[C, N, ...]``.
        """
        of_rows = values[1 + self.samples :].reshape(len(self._cells), self.samples, *values.shape[1:])
        in_order = torch.empty_like(of_rows)
        in_order[torch.tensor(self._order, dtype=torch.int64, device=values.device)] = of_rows
        return in_order

    def noise_of_rows(self, count: int) -> Tensor:
        """Return for each of the first rows the row of the run with its noise: 0 for the clean one, else 1 to N."""
        rows = torch.arange(count, device=self.device) - 1
        return torch.where(rows < 0, 0, rows % self.samples + 1)

    def _birth_at(self, layer: int) -> Birth:
        """Return what is born at a layer's input; the number of layers stands for the last layer's output."""
        born = np.flatnonzero(self._births == layer)
        restored = np.flatnonzero(self._restores[born])
        return Birth(len(born), self._rows(restored), self._repeated(self._positions[born][restored]))

    def _replaced_at(self, module: Module, layer: int) -> Replacement | None:
        """Return the rows in which a module's output is replaced in a layer; None if there are none."""
        cells_by_source: dict[str, list[int]] = {"clean": [], "corrupted": []}
        for index, cell in enumerate(self._cells):
            for override in cell.overrides:
                if override.module == module and override.first <= layer < override.stop:
                    cells_by_source[override.source].append(index)
        if not any(cells_by_source.values()):
            return None
        first = 1 + self.samples
        clean, corrupted = (np.array(cells_by_source[source], np.int64) for source in ("clean", "corrupted"))
        samples = torch.arange(1, first, device=self.device)
        zeros = torch.zeros(len(clean) * self.samples, dtype=torch.int64, device=self.device)
        return Replacement(
            torch.cat([self._rows(clean), self._rows(corrupted)]) + first,
            self._repeated(self._positions[np.concatenate([clean, corrupted])]),
            torch.cat([zeros, samples.repeat(len(corrupted))]),
        )

    def _rows(self, cells: np.ndarray) -> Tensor:
        """Return all rows of some cells, numbered from the first cell's first row."""
        rows = cells[:, None] * self.samples + np.arange(self.samples)
        return torch.from_numpy(rows.ravel().astype(np.int64)).to(self.device)

    def _repeated(self, positions: np.ndarray) -> Tensor:
        return torch.from_numpy(positions.astype(np.int64)).repeat_interleave(self.samples).to(self.device)
