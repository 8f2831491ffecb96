"""Scores on disk: a folder of plain ``.npy`` arrays and a JSON manifest.

    manifest.json      format, kinds, shape, dtype, and whatever the writer says about how the scores came about
    example_ids.npy    int64 [N], ascending
    query_ids.npy      int64 [Q]
    <kind>.npy         float32 (float64 on request) [N, Q], in Fortran order: one query's scores lie side by side

Without ftrace: ``numpy.load("dot.npy", mmap_mode="r")[:, column]``.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "ftrace-scores"
VERSION = 1
_MANIFEST = "manifest.json"


class ScoreStore:
    """A method's scores of examples for queries, opened lazily. Positive: the example is a proponent.

    Args:
        path: The folder.
        manifest: Its parsed manifest; use :meth:`open`.

    Example:
        >>> folder = tempfile.mkdtemp() + "/scores"
        >>> store = ScoreStore.write(folder, np.array([3, 8]), np.array([0]), {"dot": np.array([[0.5], [-1.0]])})
        >>> ids, scores = store.top(0, k=1)
        >>> ids.tolist(), scores.tolist()
        ([3], [0.5])
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ScoreStore:
        """Open a store; arrays are mapped into memory when first asked for.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If the folder is no score store, or one of another version.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"expected the folder of a score store, found nothing at {str(folder)!r}")
        return cls(folder, _read_manifest(folder))

    @classmethod
    def write(
        cls,
        path: str | os.PathLike[str],
        example_ids: np.ndarray,
        query_ids: np.ndarray,
        scores: Mapping[str, np.ndarray],
        manifest: Mapping[str, Any] | None = None,
    ) -> ScoreStore:
        """Write a store whole or not at all: under a temporary name first, then renamed.

        Args:
            path: The folder; an earlier store there is replaced, anything else is an error.
            example_ids: ``[N]`` int64.
            query_ids: ``[Q]`` int64.
            scores: For each kind, ``[N, Q]``.
            manifest: Anything JSON holds, about how the scores came about.

        Raises:
            ValueError: If shapes don't agree, ids repeat, or the folder is not ours to replace.
        """
        folder = Path(path).resolve()
        check_replaceable(folder)
        shape = (len(example_ids), len(query_ids))
        for name, ids in (("example_ids", example_ids), ("query_ids", query_ids)):
            if len(np.unique(ids)) != len(ids):
                raise ValueError(f"expected {name} without duplicates, found {len(ids) - len(np.unique(ids))} of them")
        for kind, values in scores.items():
            if values.shape != shape:
                raise ValueError(f"expected scores of kind {kind!r} of shape {shape}, found {values.shape}")
        order = np.argsort(example_ids, kind="stable")
        arrays = {"example_ids": np.asarray(example_ids, np.int64)[order], "query_ids": np.asarray(query_ids, np.int64)}
        for kind, values in scores.items():
            dtype = np.float64 if values.dtype == np.float64 else np.float32
            arrays[kind] = np.asfortranarray(values[order], dtype=dtype)
        facts = {
            "format": FORMAT,
            "version": VERSION,
            "kinds": list(scores),
            "num_examples": shape[0],
            "num_queries": shape[1],
            "dtype": {kind: str(arrays[kind].dtype) for kind in scores},
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array)
            (temporary / _MANIFEST).write_text(
                json.dumps({**(manifest or {}), **facts}, indent=2, allow_nan=False) + "\n"
            )
            temporary.chmod(0o777 & ~_umask())
            _swap_in(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return cls.open(folder)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The score kinds that the store holds."""
        return tuple(self.manifest["kinds"])

    @cached_property
    def example_ids(self) -> np.ndarray:
        """``[N]`` int64, ascending."""
        return self._load("example_ids", (self.manifest["num_examples"],))

    @cached_property
    def query_ids(self) -> np.ndarray:
        """``[Q]`` int64."""
        return self._load("query_ids", (self.manifest["num_queries"],))

    def check(self) -> None:
        """Make sure that all arrays are there and whole.

        Raises:
            ValueError: If one is not.
        """
        _ = self.example_ids, self.query_ids
        for kind in self.kinds:
            self.matrix(kind)

    def matrix(self, kind: str | None = None) -> np.ndarray:
        """All scores of a kind, ``[N, Q]``, mapped from disk.

        Args:
            kind: One of :attr:`kinds`. Left out, the only one, or ``dot`` where there are several.

        Raises:
            ValueError: If the store doesn't hold that kind, or its file is damaged.
        """
        if kind is None:
            kind = self.kinds[0] if len(self.kinds) == 1 else "dot"
        if kind not in self.kinds:
            raise ValueError(f"{self.path}: expected one of the kinds {list(self.kinds)}, found {kind!r}")
        return self._load(kind, (self.manifest["num_examples"], self.manifest["num_queries"]))

    def scores(self, query_id: int, kind: str | None = None) -> np.ndarray:
        """One query's scores, ``[N]``, in the order of :attr:`example_ids`.

        Raises:
            KeyError: If the store has no such query.
            ValueError: As :meth:`matrix`.
        """
        columns = np.flatnonzero(self.query_ids == query_id)
        if not len(columns):
            known = f"{len(self.query_ids)} queries, the first {self.query_ids[:3].tolist()}"
            raise KeyError(f"{self.path}: no query {query_id}; the store has {known}")
        return np.array(self.matrix(kind)[:, columns[0]])

    def top(
        self, query_id: int, k: int = 10, kind: str | None = None, *, largest: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """The strongest proponents of a query, or with ``largest=False`` its strongest opponents.

        Returns:
            Example ids ``[k]`` and their scores ``[k]``, strongest first; ties by id.

        Raises:
            KeyError, ValueError: As :meth:`scores`.
        """
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k: expected a whole number from 1 on, found {k!r}")
        scores = self.scores(query_id, kind)
        order = np.argsort(-scores if largest else scores, kind="stable")[:k]
        return self.example_ids[order], scores[order]

    def _load(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        file = self.path / f"{name}.npy"
        try:
            array: np.ndarray = np.load(file, mmap_mode="r" if all(shape) else None, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{file} is missing or damaged ({error}). Write the store anew.") from error
        if array.shape != shape:
            raise ValueError(f"{file}: expected shape {shape} as in the manifest, found {array.shape}")
        return array


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Make sure that writing a store here would lose nothing but an earlier store.

    Raises:
        ValueError: If there is a file, the working directory, or a folder that holds anything but a score store.
    """
    folder = Path(path).resolve()
    try:
        if folder == Path.cwd():
            raise ValueError("it is the working directory")
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
        if not folder.is_dir():
            raise ValueError("it is a file")
        _read_manifest(folder)
        foreign = [file.name for file in folder.iterdir() if file.suffix != ".npy" and file.name != _MANIFEST]
        if foreign:
            raise ValueError(f"it also holds {sorted(foreign)[0]!r}")
    except ValueError as error:
        message = (
            f"won't write scores to {str(folder)!r}: expected nothing or an earlier score store there, but {error}"
        )
        raise ValueError(f"{message}. Name another folder.") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / _MANIFEST
    try:
        manifest = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(folder)!r} is not a score store: can't read its {_MANIFEST} ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{str(folder)!r} is not a score store: its {_MANIFEST} doesn't say format {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"{str(folder)!r} is a score store of version {manifest.get('version')}, and this ftrace reads {VERSION}"
        )
    missing = {"kinds", "num_examples", "num_queries"} - manifest.keys()
    if missing:
        raise ValueError(f"{str(folder)!r} is a damaged score store: its {_MANIFEST} lacks {sorted(missing)}")
    return manifest


def _swap_in(temporary: Path, folder: Path) -> None:
    """Rename a finished folder to its place; the earlier one is put aside first and deleted last."""
    if not folder.exists():
        temporary.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.rename(aside / folder.name)
    temporary.rename(folder)
    shutil.rmtree(aside)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
