"""A score store that is written block by block, so that it may be larger than memory."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ftrace.arguments import Name, checked
from ftrace.files.full_disks import full_disk_named
from ftrace.files.reserved import reserve
from ftrace.files.whole_files import folder_stamp, put_folder, temporary_folder
from ftrace.scores.ids import as_ids, is_ascending
from ftrace.scores.store import ScoreStore
from ftrace.scores.store_files import (
    check_kinds,
    check_names,
    check_replaceable,
    file_name,
    make_facts,
    parts_of,
    write_manifest,
    write_texts,
)
from ftrace.scores.sums import Sum
from ftrace.scores.texts import Texts


@checked
class ScoreWriter:
    """A writer of a store through memory maps. The store takes its place, whole, when it is finished.

    Args:
        path: The store's folder; an earlier store there is replaced, anything else is an error.
        example_ids: ``[N]`` int64, ascending.
        query_ids: ``[Q]`` int64.
        keys: The kinds, or parts of kinds, that will be written.
        dtype: float32 or float64.

    Raises:
        ValueError: If ids repeat, examples are not in ascending order, or the folder holds anything but an earlier
            store.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = mkdtemp() + "/scores"
        >>> with ScoreWriter(folder, np.array([3, 8]), np.array([0]), ["dot"]) as writer:
        ...     writer.put("dot", np.array([[0.5], [-1.0]]))
        ...     store = writer.finish({"method": "mine"})
        >>> store.scores(0).tolist()
        [0.5, -1.0]
    """

    def __init__(
        self,
        path: Name | os.PathLike[Name],
        example_ids: np.ndarray,
        query_ids: np.ndarray,
        keys: Sequence[Sum | str],
        dtype: Any = np.float32,
    ) -> None:
        self.folder = Path(path).resolve()
        self._earlier = folder_stamp(self.folder)
        check_replaceable(self.folder)
        examples, queries = as_ids(example_ids, "example_ids"), as_ids(query_ids, "query_ids")
        if not is_ascending(examples) or len(np.unique(queries)) < len(queries):
            raise ValueError("expected example_ids in ascending order, and each example and query once")
        self._keys = [Sum(key) if isinstance(key, str) else key for key in keys]
        check_kinds(key.kind for key in self._keys)
        self._parts = parts_of(self._keys)
        check_names(self._keys, self._parts)
        self._facts = make_facts(self._keys, examples, queries, np.dtype(dtype))
        self._example_ids, self._query_ids = examples, queries
        self._shape = len(examples), len(queries)
        self._dtype = np.dtype(dtype)
        with ExitStack() as cleanup:
            self._temporary = cleanup.enter_context(temporary_folder(self.folder))
            np.save(self._temporary / "example_ids.npy", examples, allow_pickle=False)
            np.save(self._temporary / "query_ids.npy", queries, allow_pickle=False)
            needed = len(self._keys) * math.prod(self._shape) * self._dtype.itemsize
            with full_disk_named(self.folder, needed):  # before the work begins
                self._maps = {key: self._map(key) for key in self._keys}
            self._cleanup = cleanup.pop_all()

    def _map(self, key: Sum) -> np.ndarray:
        file = self._temporary / f"{file_name(key, self._parts)}.npy"
        if not all(self._shape):  # an empty file can't be mapped
            np.save(file, np.zeros(self._shape, self._dtype, order="F"))
            return np.zeros(self._shape, self._dtype)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": True, "shape": self._shape}
        with file.open("wb+") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            reserve(stream, stream.tell() + math.prod(self._shape) * self._dtype.itemsize)
        mapped: np.ndarray = np.lib.format.open_memmap(file, mode="r+")
        return mapped

    def put(
        self, key: Sum | str, values: np.ndarray, rows: slice | None = None, columns: slice | int | None = None
    ) -> None:
        """Write a block of one matrix.

        Args:
            key: The matrix.
            values: Scores in the block's shape.
            rows: The examples, as positions in ``example_ids``; default: all.
            columns: The queries, as positions in ``query_ids``; default: all.
        """
        block = rows if rows is not None else slice(None), columns if columns is not None else slice(None)
        self._maps[Sum(key) if isinstance(key, str) else key][block] = values

    def flush(self) -> None:
        """Write to disk what is in memory, so that the operating system can free it."""
        for mapped in self._maps.values():
            if isinstance(mapped, np.memmap):
                mapped.flush()

    def finish(
        self,
        manifest: Mapping[str, Any] | None = None,
        examples: Texts | None = None,
        queries: Texts | None = None,
    ) -> ScoreStore:
        """Put the store in its place.

        Args:
            manifest: What to note about how the scores were computed; anything that JSON can hold.
            examples: Texts of the examples; those of other ids are left out.
            queries: Texts of the queries, likewise.
        """
        self.flush()
        self._maps.clear()
        write_texts(self._temporary, examples, self._example_ids, queries, self._query_ids)
        write_manifest(self._temporary, manifest or {}, self._facts)
        put_folder(self._temporary, self.folder, sync=True, earlier=self._earlier)
        return ScoreStore.open(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.__exit__(kind, error, trace)
