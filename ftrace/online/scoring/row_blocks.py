"""A matrix of sums that grows by blocks of rows, so that no row is ever copied to make room for others."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftrace.files.reserved import reserve
from ftrace.files.whole_files import temporary_file

BLOCK_BYTES = 16 * 2**20

MakeZeros = Callable[[Sequence[int], torch.dtype], Tensor]


def zeros_in_memory(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Make zeros whose memory is taken page by page, when they are first written.

    They get a mapping of their own where the system knows such: the C library would give them memory that other blocks
    have freed, and write zeros to all of it.

    Raises:
        MemoryError: If the system has no such memory.
    """
    size = math.prod(shape) * dtype.itemsize
    if not size or not hasattr(mmap, "MAP_ANONYMOUS"):  # Windows
        return torch.from_numpy(np.zeros(tuple(shape), str(dtype).removeprefix("torch.")))
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"Unable to allocate {size / 2**20:.1f} MiB for zeros of shape {tuple(shape)}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)  # as NumPy does
    return torch.frombuffer(pages, dtype=dtype).view(*shape)


class BlockMemory:
    """The memory of blocks: the first ones are in the process's memory, and those beyond a budget in mapped files.

    A mapped file has a name only until it is mapped, so nothing is left behind however the process ends. Its space on
    disk is reserved first.

    Args:
        folder: The folder of the files, which is made if it is missing.
        budget: Bytes of blocks in the process's memory.

    Attributes:
        in_memory: Bytes of the blocks in memory.
        on_disk: Bytes of the blocks in files.
    """

    def __init__(self, folder: Path, budget: float = math.inf) -> None:
        self.folder = folder
        self.budget = budget
        self.in_memory = self.on_disk = 0

    def __call__(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Make a block of zeros.

        Raises:
            OSError: If the disk is full.
        """
        size = math.prod(shape) * dtype.itemsize
        if not size or self.in_memory + size <= self.budget:
            self.in_memory += size
            return zeros_in_memory(shape, dtype)
        self.folder.mkdir(parents=True, exist_ok=True)
        with temporary_file(self.folder / "scores") as file:
            with file.open("r+b") as stream:
                reserve(stream, size)
            block = torch.from_file(str(file), shared=True, size=math.prod(shape), dtype=dtype)
        self.on_disk += size
        return block.view(*shape)


class RowBlocks:
    """Sums by row, zero at first.

    Args:
        row_shape: The shape of a row: ``(Q,)``, or ``()`` where a row is one number.
        dtype: float32 or float64.
        make_zeros: Makes the memory of a block.
    """

    def __init__(self, row_shape: tuple[int, ...], dtype: torch.dtype, make_zeros: MakeZeros = zeros_in_memory) -> None:
        self.row_shape = row_shape
        self.dtype = dtype
        self._make_zeros = make_zeros
        self._rows_of_block = max(1, BLOCK_BYTES // (max(1, math.prod(row_shape)) * dtype.itemsize))
        self._blocks: list[Tensor] = []
        self._before: dict[int, Tensor] | None = None

    def _grow(self, rows: int) -> None:
        while len(self._blocks) * self._rows_of_block < rows:
            self._blocks.append(self._make_zeros((self._rows_of_block, *self.row_shape), self.dtype))

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Add values to rows; a row that occurs twice is added to twice.

        Args:
            rows: ``[n]`` int64.
            values: ``[n, *row_shape]``.
        """
        if not len(rows):
            return
        self._grow(int(rows.max()) + 1)
        if self._before is not None:
            for row in set(rows.tolist()) - self._before.keys():
                self._before[row] = self._blocks[row // self._rows_of_block][row % self._rows_of_block].clone()
        for block, inside, chosen in self._by_block(rows):
            block.index_add_(0, inside, values if chosen is None else values[chosen])

    def take(self, rows: Tensor) -> Tensor:
        """Copy some rows, ``[n, *row_shape]``."""
        taken = torch.zeros(len(rows), *self.row_shape, dtype=self.dtype)
        for block, inside, chosen in self._by_block(rows):
            if chosen is None:
                return block[inside]
            taken[chosen] = block[inside]
        return taken

    def _by_block(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Group rows by block: the block, the rows in it, and which they are among all; None for all of them.

        Rows that nothing was added to may have no block yet; these are left out.
        """
        numbers = rows // self._rows_of_block
        different = numbers.unique().tolist()
        for number in different:
            if number < len(self._blocks):
                chosen = (numbers == number).nonzero().flatten() if len(different) > 1 else None
                inside = rows if chosen is None else rows[chosen]
                yield self._blocks[number], inside - number * self._rows_of_block, chosen

    def widen(self, row_shape: tuple[int, ...]) -> None:
        """Make rows longer; what is new in them is zero. Memory for one more block is needed meanwhile."""
        for number, block in enumerate(self._blocks):
            wider = self._make_zeros((len(block), *row_shape), self.dtype)
            wider[tuple(map(slice, block.shape))] = block
            self._blocks[number] = wider
        self.row_shape = row_shape

    def remember(self) -> None:
        """Let :meth:`state` describe the sums as they are now, whatever is added later: changed rows are kept."""
        self._before = {}

    def state(self, rows: int) -> dict[str, Any]:
        """Return the first rows as numbers and tensors, without a copy of them.

        Returns:
            "blocks", the sums; and the rows that were changed since they were remembered, with what they were.
        """
        size = self._rows_of_block
        blocks = [block[: rows - start] for start, block in zip(range(0, rows, size), self._blocks, strict=False)]
        missing = rows - sum(map(len, blocks))
        if missing:  # nothing was added to these rows
            blocks.append(torch.zeros(1, *self.row_shape, dtype=self.dtype).expand(missing, *self.row_shape))
        before = {row: values for row, values in (self._before or {}).items() if row < rows}
        values = torch.stack(list(before.values())) if before else torch.zeros(0, *self.row_shape, dtype=self.dtype)
        return {"blocks": blocks, "changed": torch.tensor(list(before), dtype=torch.int64), "before": values}


def blocks_of_state(state: Mapping[str, Any]) -> Iterator[tuple[int, Tensor]]:
    """Read what :meth:`RowBlocks.state` returned: blocks of rows, each with the number of its first row."""
    changed, before = state["changed"], state["before"]
    start = 0
    for block in state["blocks"]:
        here = (changed >= start) & (changed < start + len(block))
        if here.any():
            block = block.clone()
            block[changed[here] - start] = before[here].to(block)
        yield start, block
        start += len(block)
