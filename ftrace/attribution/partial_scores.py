"""Scores of blocks of examples that are finished, on disk, so that a killed command goes on where it was.

manifest.json    what is being computed; another computation is refused
queries-000000-000128.block-000003.002.<digest>.npz    scores of one block of examples for some queries, the sum over
                 the first two passes that these queries get; the digest is of the settings and of the file's content
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypedDict
from zipfile import BadZipFile

import numpy as np

from ftrace.files.content_digests import digest_of_parts
from ftrace.files.digests import DamagedError
from ftrace.files.manifests import Form, read_manifest, write_manifest
from ftrace.files.whole_files import put_file, temporary_file, whole_folder
from ftrace.scores import Sum

MANIFEST = "manifest.json"
_FILE = re.compile(r"queries-(\d+)-(\d+)\.block-(\d+)\.(\d+)\.[0-9a-f]{32}\.npz")


class UnfinishedFacts(TypedDict):
    """The entries of the manifest."""

    settings: dict[str, Any]


FORM = Form("ftrace-unfinished-scores", 1, UnfinishedFacts, "a folder of unfinished scores", digests_since=1)


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
        self._given = json.loads(json.dumps(settings))
        self._settings = json.dumps(self._given, sort_keys=True)

    def begin(self) -> None:
        """Make the folder, or go on with what it holds.

        Raises:
            ValueError: If it holds scores of other settings.
        """
        file, given = self.folder / MANIFEST, self._given
        if self.folder.exists():
            try:
                there = read_manifest(file, FORM)["settings"]
            except ValueError as error:
                raise ValueError(
                    f"{str(self.folder)!r} holds no unfinished scores that can be used ({error}). Move it away"
                ) from error
            different = sorted(key for key in there.keys() | given.keys() if there.get(key) != given.get(key))
            if different and self.passes_done():
                raise ValueError(
                    f"{str(self.folder)!r} holds unfinished scores of other settings ({', '.join(different)}). Give "
                    "the same ones to go on, delete the folder, or name another output_dir"
                )
            if different:  # what failed before its first block
                write_manifest(file, FORM, {"settings": given})
            return
        with whole_folder(self.folder) as temporary:
            write_manifest(temporary / MANIFEST, FORM, {"settings": given})

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
        arrays: dict[str, Any] = {str(index): values for index, values in enumerate(block.scores.values())}
        facts = {"seconds": block.seconds, "peak": block.peak_memory_bytes, "keys": json.dumps(list(block.scores))}
        arrays.update({name: np.array(fact) for name, fact in facts.items()})
        earlier = self._files(block_range, passes_before)
        name = _name(block_range, passes_before + 1)
        with temporary_file(self.folder / f"{name}.npz") as temporary:
            with temporary.open("wb") as stream:
                np.savez(stream, **arrays)
            put_file(temporary, self.folder / f"{name}.{self._digest(name, temporary)}.npz", sync=True)
        for file in earlier:
            file.unlink(missing_ok=True)

    def read(self, block_range: BlockRange, passes: int) -> Block:
        """Read a block's scores.

        Raises:
            DamagedError: If its file is missing or damaged.
        """
        files = self._files(block_range, passes)
        if not files:
            raise DamagedError(
                f"{str(self.folder)!r}: the scores of {_name(block_range, passes)} are missing. Give the command again"
            )
        name = _name(block_range, passes)
        try:
            if files[0].name != f"{name}.{self._digest(name, files[0])}.npz":
                raise ValueError("its digest is not the one in its name")
            with np.load(files[0], allow_pickle=False) as stored:
                keys = [Sum(*key) for key in json.loads(str(stored["keys"]))]
                scores = {key: stored[str(index)] for index, key in enumerate(keys)}
                return Block(scores, float(stored["seconds"]), int(stored["peak"]))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise DamagedError(
                f"{str(files[0])!r} is missing or damaged ({error}). Delete it, and give the command again"
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

    def _files(self, block_range: BlockRange, passes: int) -> list[Path]:
        """Find the file of some scores; two, with the same scores, if a process was killed when another had begun."""
        return sorted(self.folder.glob(f"{_name(block_range, passes)}.*.npz"))

    def _digest(self, name: str, file: Path) -> str:
        """Return the digest of scores, of what they are of, and of all that they depend on."""
        return digest_of_parts([self._settings, name, file.read_bytes()])


def _name(block_range: BlockRange, passes: int) -> str:
    """Name a file of scores, but for its digest."""
    return f"queries-{block_range.first:06d}-{block_range.last:06d}.block-{block_range.block:06d}.{passes:03d}"
