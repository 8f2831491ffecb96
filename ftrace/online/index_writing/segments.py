"""The segments of an index that is written while a model trains: rows are buffered, and written shard by shard.

A resumed run drops the rows of the steps that it is about to take again. Shards are written out whenever a checkpoint
is saved, and each knows the steps of its rows, so that this is exact.
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
from ftrace.index.segment import SEGMENT
from ftrace.online.processes import process_rank


class SegmentWriter:
    """One segment under way, of one process.

    Args:
        folder: The segment's.
        settings: Of the index.
        size: D.
        step: The optimizer step of its weights.
        epoch: The epoch that it began in.
    """

    def __init__(self, folder: Path, settings: IndexSettings, size: int, step: int, epoch: int) -> None:
        self.folder = folder
        self.settings = settings
        self.step = step
        self.epoch = epoch
        self._rows_of_shard = settings.rows_of_shard(size)
        self._open: list[Rows] = []

    def begin(self, preconditioners: Mapping[str, Preconditioner]) -> None:
        """Make the folder anew."""
        shutil.rmtree(self.folder, ignore_errors=True)
        write_preconditioners(self.folder, preconditioners)

    def add(self, rows: Rows) -> None:
        """Add the rows of an optimizer step."""
        self._open.append(rows)
        if sum(map(len, self._open)) >= self._rows_of_shard:
            self.flush()

    def flush(self) -> None:
        """Write out what is open."""
        if not self._open:
            return
        rows = joined(self._open)
        self._open.clear()
        file = self.folder / f"shard-{int(rows.steps[0]):08d}-{process_rank():03d}.safetensors"
        assert not file.exists(), "a step's rows are in one shard"
        write_shard(file, rows, as_dtype(self.settings.dtype))

    def close(self, blocks: Sequence[str], facts: Mapping[str, Any]) -> None:
        """Finish the segment, once all processes have written out; by one process.

        A segment without rows, such as of steps that were all left out, is deleted.
        """
        if not shard_files(self.folder):
            shutil.rmtree(self.folder)
            return
        of_segment = {"step": self.step, "epoch": self.epoch, **facts}
        close_segment(self.folder, blocks, of_segment, self.settings.sample, self.settings.features.seed)


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows of several steps as one."""
    return Rows(
        torch.cat([one.rows for one in parts]),
        torch.cat([one.ids for one in parts]),
        torch.cat([one.weights for one in parts]),
        torch.cat([one.steps for one in parts]),
    )


def drop_rows_from(folder: Path, step: int, dtype: str) -> None:
    """Delete an index's rows of a step and later ones, and open again the segments that had any.

    Args:
        folder: The index's.
        step: The first step that is going to be taken again.
        dtype: Of its rows.
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
            if kept.any():
                columns = [shard.column(name)[kept] for name in ("ids", "weights", "steps")]
                write_shard(file, Rows(shard.rows(positions=kept.nonzero().flatten()), *columns), as_dtype(dtype))
            else:
                file.unlink()
