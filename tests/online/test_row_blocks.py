"""Sums in blocks of rows: as one matrix would hold them, in memory and in mapped files, and what is remembered."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftrace.gradients.freed_memory import _malloc_trim, _resident_pages
from ftrace.online.scoring import row_blocks
from ftrace.online.scoring.row_blocks import BlockMemory, RowBlocks, blocks_of_state, zeros_in_memory


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", 3 * 2 * 4)  # three rows of two numbers


@pytest.mark.parametrize("row_shape", [(2,), ()])
@pytest.mark.parametrize("budget", [0, 24, float("inf")])
def test_sums_are_those_of_one_matrix_wherever_the_blocks_are(
    row_shape: tuple[int, ...], budget: float, tmp_path: Path
) -> None:
    memory = BlockMemory(tmp_path / "made", budget)
    sums, whole = RowBlocks(row_shape, torch.float32, memory), torch.zeros(20, *row_shape)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        rows = torch.randint(20, (7,), generator=generator)
        values = torch.randn(7, *row_shape, generator=generator)
        sums.add(rows, values)
        whole.index_add_(0, rows, values)
    some = torch.tensor([19, 0, 7, 7])
    assert torch.equal(sums.take(some), whole[some])
    assert (memory.on_disk > 0) == (budget < float("inf"))
    assert memory.in_memory <= budget
    assert not list(tmp_path.glob("made/*"))  # a file has no name once it is mapped


def test_zeros_take_no_memory_until_they_are_written_also_where_there_was_some() -> None:
    megabytes = 16 * 2**20
    np.ones(megabytes, np.uint8)  # from now on the C library keeps so much, and its zeros are written
    freed, after = np.ones(megabytes, np.uint8), np.ones(megabytes // 4, np.uint8)
    del freed
    if (trim := _malloc_trim()) is not None:
        trim(0)
    before = _resident_pages()
    zeros = zeros_in_memory((4, megabytes // 4), torch.uint8)
    assert (_resident_pages() - before) * mmap.PAGESIZE < megabytes / 2
    assert not zeros.any()
    zeros[3] = 7
    assert zeros.sum(1).tolist() == [0, 0, 0, 7 * megabytes // 4]
    assert after.all()


def test_zeros_that_the_system_has_no_memory_for_are_a_memory_error() -> None:
    with pytest.raises(MemoryError, match=r"^Unable to allocate .* MiB for zeros of shape \(4, \d+\)$"):
        zeros_in_memory((4, 2**58), torch.float32)


def test_longer_rows_keep_what_they_had() -> None:
    sums = RowBlocks((2,), torch.float32)
    sums.add(torch.tensor([0, 4]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    sums.widen((3,))
    sums.add(torch.tensor([4]), torch.ones(1, 3))
    assert sums.take(torch.tensor([0, 4])).tolist() == [[1.0, 2.0, 0.0], [4.0, 5.0, 1.0]]


def restored(state: Any) -> torch.Tensor:
    return torch.cat([block for _, block in blocks_of_state(state)])


def test_a_state_is_of_the_moment_that_was_remembered_and_copies_no_block() -> None:
    sums = RowBlocks((2,), torch.float32)
    sums.add(torch.arange(7), torch.ones(7, 2))
    sums.remember()
    sums.add(torch.tensor([1, 1, 6]), torch.ones(3, 2))
    sums.add(torch.tensor([1]), torch.ones(1, 2))
    state = sums.state(7)
    assert torch.equal(restored(state), torch.ones(7, 2))
    assert sums.take(torch.tensor([1, 6])).tolist() == [[4.0, 4.0], [2.0, 2.0]]
    assert state["blocks"][0].data_ptr() == sums.state(7)["blocks"][0].data_ptr()
    assert sorted(state["changed"].tolist()) == [1, 6]


def test_rows_that_nothing_was_added_to_are_zero_and_take_no_memory(tmp_path: Path) -> None:
    memory = BlockMemory(tmp_path)
    sums = RowBlocks((2,), torch.float32, memory)
    sums.add(torch.tensor([1]), torch.ones(1, 2))
    before = memory.in_memory
    assert sums.take(torch.tensor([8, 1])).tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert restored(sums.state(8)).sum() == 2
    assert len(restored(sums.state(8))) == 8
    assert memory.in_memory == before
