"""The memory of a run: what it needs is held against what is free, before its first step.

What follows from settings alone is known when training begins. Gradients that aren't projected are as large as
activations are: queries' gradients are measured when they have been computed for the first time, and examples'
contributions when the first ones have been read.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ftrace.files.free_space import free_addresses
from ftrace.gradients import PerExampleGradients, QueryGradients
from ftrace.online.memory_estimates import MemoryEstimates, free_memory_here
from ftrace.online.memory_needs import MemoryNeeds
from ftrace.online.processes import gather_objects
from ftrace.online.scoring.row_blocks import BlockMemory, zeros_in_memory
from ftrace.online.traced_run import TracedRun
from ftrace.scores.row_ranges import RANGE_BYTES

StoreOption = Literal["memory", "disk", "auto"]

AUTO_FRACTION = 0.5  # of the memory that is free when training begins

_REMEDIES = {
    "scores": 'keep those of some examples with candidates=[...], or all in a file with store="disk"',
    "query gradients": "project them with a smaller projection_side=K, or trace the queries in parts, in several runs",
    "held contributions": "project them with a smaller projection_side=K, or refresh more often",
    "ledger": "pass ledger=False",
    "ledger's rows": "pass ledger=False, or refresh less often",
    "record of answers": "refresh less often",
    "whitening": "pass a smaller projection_side=K, since R has K^4 numbers for each parameter",
    "a batch's scores": "make batches smaller, or trace the queries in parts, in several runs",
}


class OutOfMemoryError(ValueError):
    """The error that memory, or the disk, ran out while scores were computed."""


def make_block_memory(store: StoreOption, folder: Path) -> BlockMemory:
    """Decide how many bytes of scores are held in memory, before others are held in files.

    Args:
        store: The setting.
        folder: Where files are made.
    """
    free = free_memory_here() if store == "auto" else 0.0
    return BlockMemory(folder, {"memory": math.inf, "disk": 0.0, "auto": AUTO_FRACTION * free}[store])


class RunMemory:
    """The memory that a run needs beside plain training.

    Args:
        run: The run, before its first batch.
        blocks: The memory of its scores.
        output_dir: Where its scores are written.

    Attributes:
        needs: What it needs, as far as that is known by now.
    """

    def __init__(self, run: TracedRun, blocks: BlockMemory, output_dir: Path) -> None:
        self._run = run
        self._blocks = blocks
        self._estimates = MemoryEstimates(run, blocks, output_dir)
        self._was_measured = False
        self._set_aside: Tensor | None = zeros_in_memory((6 * RANGE_BYTES,), torch.uint8)  # no page of it is taken
        self.needs: MemoryNeeds = self._estimates.needs()

    def before_training(self) -> None:
        """Tell what is needed, as far as it follows from settings. All processes must call it.

        Raises:
            ValueError: On all processes, if it doesn't fit.
        """
        self._refuse_shortage()
        if self.needs.is_notable:
            self._run.loop.tell(f"{self._run.who}: {self.needs}")

    def measure(self) -> None:
        """Measure the gradients of queries and of the first examples, once they have been read; then do nothing.

        All processes must call it.

        Raises:
            ValueError: On all processes, if what is needed doesn't fit.
        """
        if self._was_measured:
            return
        self._was_measured = True
        run, before = self._run, self.needs
        directions = run.scoring.directions
        self._estimates.of_queries = 2 * bytes_of([directions.queries, directions.unprojected, run.refresher.last])
        self._estimates.of_batch = sum(bytes_of(optimizer.contributions) for optimizer in run.parameters.followed)
        self.needs = self._estimates.needs()
        self._refuse_shortage()
        if self.needs.is_notable and self.needs.total > 1.2 * before.total:
            run.loop.tell(f"{run.who}: with gradients as measured in the first batch, the run {self.needs}")

    def _refuse_shortage(self) -> None:
        problems = [text for text in gather_objects(self._problem()) if text]
        if problems:
            raise ValueError(problems[0])

    def _problem(self) -> str | None:
        shortage = self.needs.shortage()
        if shortage is None:
            return None
        place, largest = shortage
        return (
            f"{self._run.who}: expected a run that fits, found that it {self.needs}. Most of the {place.name} is for "
            f"{largest}: {self._remedy(place.name, largest)}"
        )

    def _remedy(self, place: str, largest: str) -> str:
        if place == "disk":
            remedy = "keep scores of some examples with candidates=[...], or name an output_dir on a larger disk"
        elif largest == "scores" and (self._blocks.budget < math.inf or free_addresses() < self.needs.total):
            remedy = "keep those of some examples with candidates=[...]"
        else:
            remedy = _REMEDIES.get(largest, "keep scores of some examples with candidates=[...]")
        is_of_scores = place == "disk" or largest in ("scores", "a batch's scores")
        return (
            f"{remedy}, or ask for fewer kinds and parts" if is_of_scores and self._estimates.matrices > 1 else remedy
        )

    @contextmanager
    def named(self) -> Iterator[None]:
        """Let memory or disk that runs out be an error of one line, with what the run needs and a remedy.

        Raises:
            OutOfMemoryError: Instead of the allocator's own error.
        """
        try:
            yield
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            place, largest = self.needs.largest(exhausted_place(error))
            remedy = self._remedy(place, largest)
            raise OutOfMemoryError(
                f"{self._run.who}: expected enough {place} for scores, found none left at step {self._run.step}. The "
                f"run {self.needs}. Most of the {place} is for {largest}: {remedy}"
            ) from error

    def release(self) -> None:
        """Give back the memory that was set aside, so that the scores so far can be written."""
        self._set_aside = None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, or the disk, has run out."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def exhausted_place(error: BaseException) -> str:
    """Name the place that has run out, as :class:`MemoryNeeds` names it."""
    if isinstance(error, OSError) and error.errno != errno.ENOMEM:
        return "disk"
    return "memory of the device" if isinstance(error, torch.OutOfMemoryError) else "memory"


def bytes_of(value: Any) -> int:
    """Count the bytes of all tensors in a value, each memory once."""
    sizes: dict[int, int] = {}
    _collect(value, sizes, set())
    return sum(sizes.values())


def _collect(value: Any, sizes: dict[int, int], seen: set[int]) -> None:
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
    elif id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, Mapping):
            inner: Iterable[Any] = value.values()
        elif isinstance(value, list | tuple | set):
            inner = value
        elif is_dataclass(value):
            inner = [getattr(value, field.name) for field in fields(value)]
        elif isinstance(value, PerExampleGradients | QueryGradients):
            inner = vars(value).values()
        else:
            inner = ()
        for item in inner:
            _collect(item, sizes, seen)
