"""Scores of blocks of examples that are finished, on disk, so that a killed command goes on where it was.

manifest.json                              what is being computed; another computation is refused
queries-000000-000128.block-000003.002.npz    scores of one block of examples for some queries, the sum over the
                                           first two passes that these queries get
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from ftrace.files.whole_files import whole_file, whole_folder
from ftrace.scores import Sum

_FILE = re.compile(r"queries-(\d+)-(\d+)\.block-(\d+)\.(\d+)\.npz")


class BlockRange(NamedTuple):
    """A block of examples and a range of queries.

    Args:
        first: The first query's position.
        last: One past the last query's position.
        block: The block's number.
    """

    first: int
    last: int
    block: int


class Block(NamedTuple):
    """Scores of a block of examples for a range of queries.

    Args:
        scores: For each matrix ``[examples, queries]``.
        seconds: What they took.
        peak_memory_bytes: The most memory that a process had at that time.
    """

    scores: dict[Sum, np.ndarray]
    seconds: float
    peak_memory_bytes: int


class PartialScores:
    """The folder of unfinished scores beside a store. All processes of a job share it; one of them begins it.

    Args:
        output_dir: The store's folder.
        settings: All that the scores depend on, as JSON holds it.
    """

    def __init__(self, output_dir: Path, settings: Mapping[str, Any]) -> None:
        self.folder = output_dir.with_name(f"{output_dir.name}-partial")
        self._settings = settings

    def begin(self) -> None:
        """Make the folder, or go on with what it holds.

        Raises:
            ValueError: If it holds scores of other settings.
        """
        file = self.folder / "manifest.json"
        text = json.dumps(self._settings, indent=2) + "\n"
        given = json.loads(text)
        if self.folder.exists():
            try:
                there = json.loads(file.read_text())
            except (OSError, ValueError) as error:
                raise ValueError(f"{str(self.folder)!r} holds no unfinished scores. Move it away") from error
            different = sorted(key for key in there.keys() | given.keys() if there.get(key) != given.get(key))
            if different and self.passes_done():
                raise ValueError(
                    f"{str(self.folder)!r} holds unfinished scores of other settings ({', '.join(different)}). Give "
                    "the same ones to go on, delete the folder, or name another output_dir"
                )
            if different:  # what failed before its first block
                with whole_file(file) as temporary:
                    temporary.write_text(text)
            return
        with whole_folder(self.folder) as temporary:
            (temporary / "manifest.json").write_text(text)

    def passes_done(self) -> dict[BlockRange, int]:
        """Count the passes that the scores of each range are summed over."""
        done: dict[BlockRange, int] = {}
        for file in self.folder.iterdir():
            if match := _FILE.fullmatch(file.name):
                first, last, block, count = map(int, match.groups())
                block_range = BlockRange(first, last, block)
                done[block_range] = max(count, done.get(block_range, 0))
        return done

    def add(self, block_range: BlockRange, passes_before: int, block: Block) -> None:
        """Keep a block's scores of one more pass, added to those of earlier passes."""
        if passes_before:
            before = self.read(block_range, passes_before)
            summed = {key: before.scores[key] + values for key, values in block.scores.items()}
            peak = max(before.peak_memory_bytes, block.peak_memory_bytes)
            block = Block(summed, before.seconds + block.seconds, peak)
        file = self._file(block_range, passes_before + 1)
        arrays: dict[str, Any] = {str(index): values for index, values in enumerate(block.scores.values())}
        facts = {"seconds": block.seconds, "peak": block.peak_memory_bytes, "keys": json.dumps(list(block.scores))}
        arrays.update({name: np.array(fact) for name, fact in facts.items()})
        with whole_file(file, sync=True) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)
        if passes_before:
            self._file(block_range, passes_before).unlink(missing_ok=True)

    def read(self, block_range: BlockRange, passes: int) -> Block:
        """Read a block's scores.

        Raises:
            ValueError: If its file is missing or damaged.
        """
        file = self._file(block_range, passes)
        try:
            with np.load(file, allow_pickle=False) as stored:
                keys = [Sum(*key) for key in json.loads(str(stored["keys"]))]
                scores = {key: stored[str(index)] for index, key in enumerate(keys)}
                return Block(scores, float(stored["seconds"]), int(stored["peak"]))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ValueError(
                f"{str(file)!r} is missing or damaged ({error}). Delete it, and give the command again"
            ) from error

    def remove(self) -> None:
        """Delete the folder, once the store is complete."""
        shutil.rmtree(self.folder)

    def remove_without_work(self) -> None:
        """Delete the folder if it holds no scores, so that nothing is left of a command that failed at once."""
        if self.folder.exists() and not self.passes_done():
            with suppress(OSError):  # it holds something else
                (self.folder / "manifest.json").unlink()
                self.folder.rmdir()

    def _file(self, block_range: BlockRange, passes: int) -> Path:
        name = f"queries-{block_range.first:06d}-{block_range.last:06d}.block-{block_range.block:06d}.{passes:03d}.npz"
        return self.folder / name
