"""The segments of an index that is written while a model trains: rows are buffered, and written shard by shard.

A resumed run drops the rows of the steps that it is about to repeat. This is exact: open rows are written to disk
whenever a checkpoint is saved, and each shard holds the steps of its rows.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ftrace.gradients import Preconditioner
from ftrace.index import (
    IndexSettings,
    Rows,
    Shard,
    as_dtype,
    close_segment,
    shard_files,
    write_preconditioners,
    write_shard,
)
from ftrace.index.segment_facts import SEGMENT
from ftrace.online.processes import process_rank


class SegmentWriter:
    """A segment that one process is writing.

    Args:
        folder: The segment's folder.
        settings: The index's settings.
        size: D, the number of elements of a row.
        step: The optimizer step at which it began, and whose weights it keeps.
        epoch: The epoch in which it began.
    """

    def __init__(self, folder: Path, settings: IndexSettings, size: int, step: int, epoch: int) -> None:
        self.folder = folder
        self.settings = settings
        self.step = step
        self.epoch = epoch
        self._rows_of_shard = settings.rows_of_shard(size)
        self._open: list[Rows] = []

    def begin(self, preconditioners: Mapping[str, Preconditioner]) -> None:
        """Create the folder, in place of any earlier one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        write_preconditioners(self.folder, preconditioners)

    def add(self, rows: Rows) -> None:
        """Add the rows of an optimizer step."""
        self._open.append(rows)
        if sum(map(len, self._open)) >= self._rows_of_shard:
            self.flush()

    def flush(self) -> None:
        """Write the buffered rows to disk."""
        if not self._open:
            return
        rows = joined(self._open)
        self._open.clear()
        file = self.folder / f"shard-{int(rows.steps[0]):08d}-{process_rank():03d}.safetensors"
        assert not file.exists(), "a step's rows are in one shard"
        write_shard(file, rows, as_dtype(self.settings.dtype))

    def close(self, blocks: Sequence[str], facts: Mapping[str, Any]) -> None:
        """Finish the segment; called by one process, once all of them have written their rows.

        A segment without rows, for example because all its steps were left out, is deleted.
        """
        if not shard_files(self.folder):
            shutil.rmtree(self.folder)
            return
        of_segment = {"step": self.step, "epoch": self.epoch, **facts}
        close_segment(self.folder, blocks, of_segment, self.settings.sample, self.settings.features.seed)


def joined(parts: Sequence[Rows]) -> Rows:
    """Concatenate the rows of several steps."""
    return Rows(
        torch.cat([part.rows for part in parts]),
        torch.cat([part.ids for part in parts]),
        torch.cat([part.weights for part in parts]),
        torch.cat([part.steps for part in parts]),
    )


def drop_rows_from(folder: Path, step: int, dtype: str) -> None:
    """Delete an index's rows of one step and of all later ones, and reopen the segments that had any.

    Args:
        folder: The index's folder.
        step: The first step that is going to be repeated.
        dtype: The dtype of its rows.
    """
    for segment in sorted(folder.glob("segment-*")):
        if int(segment.name.removeprefix("segment-")) >= step:
            shutil.rmtree(segment)
            continue
        for file in shard_files(segment):
            shard = Shard(file)
            kept = shard.column("steps") < step
            if kept.all():
                continue
            (segment / SEGMENT).unlink(missing_ok=True)
            shard.check()  # before the rows that stay are written anew, as if they were right
            if kept.any():
                columns = [shard.column(name)[kept] for name in ("ids", "weights", "steps")]
                write_shard(file, Rows(shard.rows(positions=kept.nonzero().flatten()), *columns), as_dtype(dtype))
            else:
                file.unlink()
