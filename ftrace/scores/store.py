"""Scores on disk: a folder of plain ``.npy`` arrays and a JSON manifest.

    manifest.json      format, kinds, shape, dtype, and what the writer says about how the scores were computed
    example_ids.npy    int64 [N], ascending
    query_ids.npy      int64 [Q]
    <kind>.npy         float32 (float64 on request) [N, Q], in Fortran order: one query's scores are contiguous
    <kind>.<axis>.<n>.npy   the same for the n-th part, if the kind is broken down; manifest.json names the parts
    example_names.npy, query_names.npy   the names, if ids were made from names
    ledger.parquet     the run's ledger, if one was kept
    examples.parquet, queries.parquet   texts by id, if they are known (:class:`ftrace.scores.Texts`)

If each query has candidates of its own, scores are [pairs], query by query. candidate_ids.npy [pairs] then says which
example each score belongs to, and candidate_offsets.npy [Q + 1] where each query begins.

Without ftrace: ``numpy.load("dot.npy", mmap_mode="r")[:, column]``.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ftrace.scores.ids import as_ids, stable_id
from ftrace.scores.ledger import Ledger
from ftrace.scores.store_files import (
    EXAMPLES,
    LEDGER,
    MANIFEST,
    QUERIES,
    check_replaceable,
    file_name,
    make_facts,
    parts_of,
    read_manifest,
    write_texts,
)
from ftrace.scores.sums import Sum
from ftrace.scores.texts import EXAMPLE_ID, QUERY_ID, Texts
from ftrace.whole_files import whole_folder


class ScoreStore:
    """A method's scores of examples for queries, opened lazily. Positive: the example is a proponent.

    Args:
        path: The folder.
        manifest: Its parsed manifest; :meth:`open` reads it.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = mkdtemp() + "/scores"
        >>> store = ScoreStore.write(folder, np.array([3, 8]), np.array([0]), {"dot": np.array([[0.5], [-1.0]])})
        >>> ids, scores = store.top(0, k=1)
        >>> ids.tolist(), scores.tolist()
        ([3], [0.5])
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._warned_of: set[str] = set()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ScoreStore:
        """Open a store; arrays are mapped into memory when they are first needed.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If the folder is not a score store, or one of another version.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"expected the folder of a score store, found nothing at {str(folder)!r}")
        return cls(folder, read_manifest(folder))

    @classmethod
    def write(
        cls,
        path: str | os.PathLike[str],
        example_ids: np.ndarray,
        query_ids: np.ndarray,
        scores: Mapping[str, np.ndarray] | Mapping[Sum, np.ndarray],
        manifest: Mapping[str, Any] | None = None,
        *,
        candidate_offsets: np.ndarray | None = None,
        ledger: Ledger | None = None,
        names: Mapping[int, str] | None = None,
        examples: Texts | None = None,
        queries: Texts | None = None,
    ) -> ScoreStore:
        """Write a store whole or not at all.

        Args:
            path: The folder; an earlier store there is replaced, anything else is an error.
            example_ids: ``[N]`` int64.
            query_ids: ``[Q]`` int64.
            scores: For each kind (or part of one, as :class:`Sum`), ``[N, Q]``.
            manifest: What to note about how the scores were computed; anything that JSON can hold.
            candidate_offsets: ``[Q + 1]`` int64, if each query has candidates of its own: where each query begins. Then
                ``example_ids`` and each of the scores are ``[pairs]``, query by query.
            ledger: The run's ledger.
            names: By id, for ids that were made from names.
            examples: Texts of the examples. Those of other ids are left out; an id may have none.
            queries: Texts of the queries, likewise.

        Raises:
            ValueError: If shapes don't agree, ids repeat or don't fit into 64 bits, or the folder holds anything but an
                earlier store.
        """
        folder = Path(path).resolve()
        check_replaceable(folder)
        keyed = {Sum(kind) if isinstance(kind, str) else kind: values for kind, values in scores.items()}
        parts = parts_of(keyed)
        arrays: dict[str, np.ndarray] = {}
        example_ids, query_ids = as_ids(example_ids, "example_ids"), as_ids(query_ids, "query_ids")
        if candidate_offsets is not None:
            arrays = {"candidate_ids": example_ids, "candidate_offsets": candidate_offsets}
            order = np.arange(len(example_ids))
            shape: tuple[int, ...] = (len(example_ids),)
            example_ids = np.unique(example_ids)
        else:
            order = np.argsort(example_ids, kind="stable")
            shape = (len(example_ids), len(query_ids))
            example_ids = example_ids[order]
        for name, ids in (("example_ids", example_ids), ("query_ids", query_ids)):
            if len(np.unique(ids)) != len(ids):
                raise ValueError(f"expected {name} without duplicates, found {len(ids) - len(np.unique(ids))} of them")
            arrays[name] = ids
            if names and any(int(known) in names for known in ids):
                names_of_ids = [names.get(int(known), str(known)) for known in ids]
                arrays[name.replace("_ids", "_names")] = np.array(names_of_ids, dtype=np.str_)
        for key, values in keyed.items():
            if values.shape != shape:
                raise ValueError(f"expected scores of kind {key.kind!r} of shape {shape}, found {values.shape}")
            dtype = np.float64 if values.dtype == np.float64 else np.float32
            arrays[file_name(key, parts)] = np.asfortranarray(values[order], dtype=dtype)
        facts = make_facts(list(keyed), example_ids, query_ids)
        facts["num_pairs"] = None if candidate_offsets is None else shape[0]
        facts["dtype"] = {kind: str(arrays[kind].dtype) for kind in facts["kinds"]}
        with whole_folder(folder, sync=True) as temporary:
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array, allow_pickle=False)
            if ledger is not None:
                ledger.write(temporary / LEDGER)
            write_texts(temporary, examples, example_ids, queries, query_ids)
            text = json.dumps({**(manifest or {}), **facts}, indent=2, allow_nan=False)
            (temporary / MANIFEST).write_text(text + "\n")
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

    @cached_property
    def example_names(self) -> np.ndarray | None:
        """Names of the examples, ``[N]``; None if ids were not made from names."""
        return self._names("example_names", self.manifest["num_examples"])

    @cached_property
    def query_names(self) -> np.ndarray | None:
        """Names of the queries, ``[Q]``; None if ids were not made from names."""
        return self._names("query_names", self.manifest["num_queries"])

    def _names(self, name: str, count: int) -> np.ndarray | None:
        return self._load(name, (count,)) if (self.path / f"{name}.npy").exists() else None

    @cached_property
    def ledger(self) -> Ledger | None:
        """The run's ledger; None if none was kept."""
        return Ledger.open(self.path / LEDGER) if (self.path / LEDGER).exists() else None

    @cached_property
    def examples(self) -> Texts | None:
        """Texts of the examples; None if they aren't known."""
        return Texts(self.path / EXAMPLES, EXAMPLE_ID) if (self.path / EXAMPLES).exists() else None

    @cached_property
    def queries(self) -> Texts | None:
        """Texts of the queries; None if they aren't known."""
        return Texts(self.path / QUERIES, QUERY_ID) if (self.path / QUERIES).exists() else None

    def with_texts(self, examples: Texts | None = None, queries: Texts | None = None) -> ScoreStore:
        """Return the same store with other texts, which are not written to disk; None keeps those that it has."""
        other = ScoreStore(self.path, self.manifest)
        other.examples = examples if examples is not None else self.examples
        other.queries = queries if queries is not None else self.queries
        return other

    def put_texts(self, examples: Texts | None = None, queries: Texts | None = None) -> None:
        """Write texts into the store's folder, in place of earlier ones; None keeps those that it has."""
        write_texts(self.path, examples, self.example_ids, queries, self.query_ids)
        for name in ("examples", "queries"):
            self.__dict__.pop(name, None)

    def doubts(self, kind: str | None = None) -> list[str]:
        """Return the reasons why scores of a kind can't be trusted, as their writer has noted them.

        Args:
            kind: As in :meth:`matrix`.

        Returns:
            A sentence for each reason, with the remedy; none if nothing is known against the scores.
        """
        return list(self.manifest.get("doubts", {}).get(self._known(kind), []))

    def _warn_of_doubts(self, kind: str) -> None:
        """Warn once of the doubts about a kind."""
        if kind not in self._warned_of:
            self._warned_of.add(kind)
            for sentence in self.doubts(kind):
                warnings.warn(f"{self.path}: {sentence}", stacklevel=3)

    @property
    def breakdown(self) -> dict[str, list[str]]:
        """The axes that kinds are broken down by, and the names of the parts of each."""
        parts_by_axis: dict[str, list[str]] = self.manifest.get("breakdown", {})
        return parts_by_axis

    @property
    def has_candidates(self) -> bool:
        """Whether each query has candidates of its own."""
        return self.manifest.get("num_pairs") is not None

    def check(self) -> None:
        """Make sure that all arrays are complete.

        Raises:
            ValueError: If one is missing or damaged.
        """
        _ = self.example_ids, self.query_ids
        for kind in self.kinds:
            self._values(Sum(kind))

    def matrix(self, kind: str | None = None) -> np.ndarray:
        """Map all scores of a kind from disk, ``[N, Q]``.

        Args:
            kind: One of :attr:`kinds`; default: the only one, or ``dot`` if there are several.

        Raises:
            ValueError: If the store doesn't hold that kind, its file is damaged, or each query has candidates of its
                own.
        """
        if self.has_candidates:
            raise ValueError(f"{self.path}: each query has candidates of its own. Ask for scores(query_id)")
        return self._values(Sum(self._known(kind)))

    def scores(self, query_id: int | str, kind: str | None = None) -> np.ndarray:
        """Return one query's scores, ``[N]``, in the order of :attr:`example_ids`; NaN if an example is no candidate.

        Args:
            query_id: The query's id, or its name if ids were made from names.
            kind: As in :meth:`matrix`.

        Raises:
            KeyError: If the store has no such query.
            ValueError: As :meth:`matrix`.
        """
        return self._column(query_id, Sum(self._known(kind)))

    def parts(self, query_id: int | str, axis: str, kind: str | None = None) -> dict[str, np.ndarray]:
        """Return one query's scores by layer, epoch or another axis; the parts add up to the score.

        Args:
            query_id: As in :meth:`scores`.
            axis: One of :attr:`breakdown`.
            kind: As in :meth:`matrix`.

        Returns:
            For each part, ``[N]`` as in :meth:`scores`.

        Raises:
            KeyError: If the store has no such query.
            ValueError: If scores are not broken down by this axis.
        """
        if axis not in self.breakdown:
            raise ValueError(f"{self.path}: expected one of the breakdowns {list(self.breakdown)}, found {axis!r}")
        known = self._known(kind)
        return {part: self._column(query_id, Sum(known, axis, part)) for part in self.breakdown[axis]}

    def _known(self, kind: str | None) -> str:
        if kind is None:
            kind = self.kinds[0] if len(self.kinds) == 1 else "dot"
        if kind not in self.kinds:
            raise ValueError(f"{self.path}: expected one of the kinds {list(self.kinds)}, found {kind!r}")
        return kind

    def _values(self, key: Sum) -> np.ndarray:
        pairs, shape = self.manifest.get("num_pairs"), (self.manifest["num_examples"], self.manifest["num_queries"])
        return self._load(file_name(key, self.breakdown), shape if pairs is None else (pairs,))

    def _column(self, query_id: int | str, key: Sum) -> np.ndarray:
        wanted = stable_id(query_id) if isinstance(query_id, str) else query_id
        columns = np.flatnonzero(self.query_ids == wanted)
        if not len(columns):
            known = f"{len(self.query_ids)} queries, the first {self.query_ids[:3].tolist()}"
            raise KeyError(f"{self.path}: no query {query_id}; the store has {known}")
        column = int(columns[0])
        if not self.has_candidates:
            return np.array(self._values(key)[:, column])
        offsets = self._load("candidate_offsets", (self.manifest["num_queries"] + 1,))
        pairs = slice(int(offsets[column]), int(offsets[column + 1]))
        values = self._values(key)
        scores = np.full(len(self.example_ids), np.nan, values.dtype)
        scores[np.searchsorted(self.example_ids, self._load("candidate_ids", values.shape)[pairs])] = values[pairs]
        return scores

    def top(
        self, query_id: int | str, k: int = 10, kind: str | None = None, *, largest: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find a query's strongest proponents, or with ``largest=False`` its strongest opponents.

        If there are :meth:`doubts` about the kind, the first call warns.

        Returns:
            Example ids ``[k]`` and their scores ``[k]``, strongest first, equal scores in ascending order of ids.
            Examples whose score is NaN or infinite are left out, so there may be fewer than k.

        Raises:
            KeyError, ValueError: As :meth:`scores`.
        """
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k: expected a whole number from 1 on, found {k!r}")
        scores = self.scores(query_id, kind)
        self._warn_of_doubts(self._known(kind))
        known = np.flatnonzero(np.isfinite(scores))
        order = known[np.argsort(-scores[known] if largest else scores[known], kind="stable")[:k]]
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
