"""A segment of an index: rows of examples at, or near, one set of weights.

shard-*.safetensors               rows
preconditioners.safetensors       one over the root of second moments that gradients were multiplied with
autocorrelation.safetensors       mean of phi phi^T over a random sample of rows, block by block
ids.npy, weights.npy, order.npy   of all rows; the order by id, where they are not in it
begun.json                        of a segment that is written while training: its epoch, size and digest of the first
segment.json                      size and digest of each file; written last: a segment without it is not finished
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ftrace.files.digests import DamagedError, FolderCheck, facts_of_file, facts_of_files
from ftrace.files.manifests import write_manifest
from ftrace.files.whole_files import whole_file
from ftrace.gradients import Preconditioner, RunningAutocorrelation
from ftrace.index.features import from_tensors, to_tensors
from ftrace.index.manifest import INDEX
from ftrace.index.segment_facts import FORM, PRECONDITIONERS, SEGMENT, is_verified, read_facts
from ftrace.index.shards import PATTERN, Shard

AUTOCORRELATION = "autocorrelation.safetensors"
_FILES = (PRECONDITIONERS, AUTOCORRELATION, "ids.npy", "weights.npy", "order.npy")
_OPEN = 64  # shards that are mapped into memory at a time: an index may have more than the system maps
_ROWS_AT_A_TIME = 1024


def write_preconditioners(folder: Path, preconditioners: Mapping[str, Preconditioner]) -> None:
    """Write what a segment's gradients are multiplied with; a segment begins with this."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / PRECONDITIONERS) as temporary:
        save_file(to_tensors(preconditioners), temporary)


def read_preconditioners(folder: Path, like: Tensor | None = None) -> dict[str, Preconditioner]:
    """Read what a segment's gradients are multiplied with, by parameter, on the device and in the dtype of a tensor.

    Raises:
        ValueError: If the file is missing or damaged.
    """
    return from_tensors(_tensors(folder / PRECONDITIONERS), like)


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{str(file)!r} is missing or damaged ({error}). Index again") from error


def shard_files(folder: Path) -> list[Path]:
    """List the files of a segment's shards, in the order of their names."""
    return sorted(folder.glob(PATTERN))


def close_segment(folder: Path, blocks: Sequence[str], facts: Mapping[str, Any], sample: int, seed: int) -> Segment:
    """Finish a segment whose shards are all written.

    Args:
        folder: The segment's.
        blocks: Names of the blocks of a row, in order.
        facts: For its manifest.
        sample: How many rows, drawn at random, the autocorrelation is taken of; of all where there are fewer.
        seed: Of that draw.

    Raises:
        ValueError: If there are no rows, or a shard is damaged.
    """
    files, noted, columns = shard_files(folder), [], []
    for file in files:
        shard = Shard(file)
        shard.check()  # what was written before a process was killed; from here on, digests tell
        size = file.stat().st_size
        noted.append({"file": file.name, "rows": shard.num_rows, "checksum": shard.checksum, "bytes": size})
        columns.append([shard.column(name).numpy().copy() for name in ("ids", "weights")])
    total = sum(len(of_shard) for of_shard, _ in columns)
    if not total:
        raise ValueError(f"segment {str(folder)!r}: expected rows of at least one example, found none")
    ids, weights = (np.concatenate(column) for column in zip(*columns, strict=True))
    _save(folder / "ids.npy", ids)
    _save(folder / "weights.npy", weights)
    (folder / "order.npy").unlink(missing_ok=True)  # from before it was opened again
    if (ids[1:] < ids[:-1]).any():  # a difference may exceed 64 bits
        _save(folder / "order.npy", np.argsort(ids, kind="stable"))
    drawn = np.sort(np.random.default_rng(seed).choice(total, min(sample, total), replace=False))
    running = RunningAutocorrelation(time_constant=1)
    starts = [0, *accumulate(len(of_shard) for of_shard, _ in columns)]
    for number, file in enumerate(files):
        start, stop = starts[number], starts[number + 1]
        positions = torch.from_numpy(drawn[(drawn >= start) & (drawn < stop)] - start)
        if not len(positions):
            continue
        drawn_from = Shard(file)
        for some in positions.split(_ROWS_AT_A_TIME):
            of_blocks = drawn_from.rows(positions=some).unflatten(1, (len(blocks), -1)).unbind(1)
            running.add(dict(zip(blocks, of_blocks, strict=True)))
    means = {name: running.mean(name).contiguous() for name in blocks}
    with whole_file(folder / AUTOCORRELATION) as temporary:
        save_file(means, temporary)
    names = [file.name for file in files]
    manifest = {
        **facts,
        "index": facts_of_file(folder.parent / INDEX)["xxh3_128"],
        "rows": total,
        "examples": len(np.unique(ids)),
        "autocorrelation": {"sample": len(drawn), "seed": seed},
        "shards": noted,
        "files": facts_of_files(folder, [name for name in (*_FILES, *names) if (folder / name).exists()]),
    }
    write_manifest(folder / SEGMENT, FORM, manifest)
    return Segment(folder)


def _save(file: Path, array: np.ndarray) -> None:
    with whole_file(file) as temporary, temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


class Segment:
    """A finished segment; nothing is read before it is asked for.

    Args:
        folder: The segment's.

    Raises:
        ValueError: If it is not finished, or a shard is missing, or damaged as far as its header tells.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = read_facts(folder)
        self.files = FolderCheck(folder, self.manifest["files"] if is_verified(self.manifest) else None)
        noted = self.manifest["shards"]
        for shard in noted:
            file = folder / shard["file"]
            size = file.stat().st_size if file.exists() else 0
            if size != shard["bytes"]:
                raise ValueError(
                    f"shard {str(file)!r} is missing or damaged: expected {shard['bytes']} bytes, found {size}. Delete "
                    f"it and {SEGMENT}, and index again"
                )
        self.num_shards = len(noted)
        self._noted = noted
        self._starts = [0, *accumulate(shard["rows"] for shard in noted)]
        self.shard = lru_cache(_OPEN)(self._open)

    def _open(self, number: int) -> Shard:
        noted = self._noted[number]
        self.files.check(noted["file"])
        shard = Shard(self.folder / noted["file"])
        if (shard.num_rows, shard.checksum) != (noted["rows"], noted["checksum"]):
            raise ValueError(f"shard {str(shard.file)!r} is not the one that the segment was closed with")
        return shard

    @property
    def shards(self) -> Iterator[Shard]:
        """Its shards, in order."""
        return (self.shard(number) for number in range(self.num_shards))

    def checked_shards(self) -> Iterator[Shard]:
        """Give its shards in order, each once it was verified as a whole: for readers that keep what they compute.

        Raises:
            ValueError: If one is damaged.
        """
        for number, noted in enumerate(self._noted):
            self.files.check(noted["file"], at_once=True)
            shard = self.shard(number)
            if not is_verified(self.manifest):
                shard.check()
            yield shard

    def check(self) -> None:
        """Read everything, and check it against its digests.

        Raises:
            ValueError: If a file differs, by name.
        """
        for _ in self.checked_files():
            pass

    def checked_files(self) -> Iterator[str]:
        """Read everything, and yield the path of each file that is what was written.

        Raises:
            ValueError: If a file differs, by name.
        """
        yield str(self.folder / SEGMENT)
        for name in self.files.check_all():
            yield str(self.folder / name)
        if not is_verified(self.manifest):
            yield from (str(shard.file) for shard in self.checked_shards())

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def is_double(self) -> bool:
        """Whether its rows are in float64."""
        return self.shard(0).column("scales").dtype == torch.float64

    @property
    def step(self) -> int:
        """The optimizer step of its weights."""
        return int(self.manifest["step"])

    @cached_property
    def ids(self) -> np.ndarray:
        """Ids of the rows' examples, int64 ``[N]``, mapped from disk."""
        return self._load("ids")

    @cached_property
    def weights(self) -> np.ndarray:
        """The rows' weights in weighted scores, ``[N]``, mapped from disk."""
        return self._load("weights")

    @cached_property
    def order(self) -> np.ndarray | None:
        """Positions of the rows by id, int64 ``[N]``, mapped from disk; None where they are in that order."""
        is_there = "order.npy" in self.files.files or (self.folder / "order.npy").exists()
        return self._load("order") if is_there else None

    def _load(self, name: str) -> np.ndarray:
        file = self.folder / f"{name}.npy"
        self.files.check(file.name)
        try:
            loaded: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DamagedError(f"{str(file)!r} is missing or damaged ({error}). Index again") from error
        if loaded.shape != (len(self),) or loaded.dtype.kind != ("f" if name == "weights" else "i"):
            raise DamagedError(
                f"{str(file)!r} is damaged: expected {len(self)} numbers, found {loaded.dtype} of shape {loaded.shape}"
            )
        return loaded

    def preconditioners(self, like: Tensor | None = None) -> dict[str, Preconditioner]:
        """Read what gradients are multiplied with, by parameter, on the device and in the dtype of a tensor."""
        self.files.check(PRECONDITIONERS)
        return from_tensors(_tensors(self.folder / PRECONDITIONERS), like)

    def autocorrelation(self) -> dict[str, Tensor]:
        """Read R of the rows: for each block ``[K * K, K * K]``, undamped."""
        self.files.check(AUTOCORRELATION)
        return _tensors(self.folder / AUTOCORRELATION)

    def rows(self, start: int, stop: int) -> Tensor:
        """Read a range of rows, ``[n, D]``."""
        pieces = []
        for number in range(bisect.bisect_right(self._starts, start) - 1, self.num_shards):
            first = self._starts[number]
            if first >= stop:
                break
            shard = self.shard(number)
            pieces.append(shard.rows(max(0, start - first), min(shard.num_rows, stop - first)))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def rows_at(self, positions: np.ndarray) -> Tensor:
        """Read the rows at any positions, ``[n, D]``, in their order."""
        if len(positions) and (np.diff(positions) == 1).all():
            return self.rows(int(positions[0]), int(positions[-1]) + 1)
        of_shard = np.searchsorted(self._starts, positions, side="right") - 1
        gathered: Tensor | None = None
        for shard in np.unique(of_shard):
            chosen = np.flatnonzero(of_shard == shard)
            rows = self.shard(int(shard)).rows(positions=torch.from_numpy(positions[chosen] - self._starts[shard]))
            if gathered is None:
                gathered = rows.new_empty(len(positions), rows.shape[1])
            gathered[torch.from_numpy(chosen)] = rows
        assert gathered is not None
        return gathered
