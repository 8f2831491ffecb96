"""What is read of a score store: its ids, names and texts, and its scores, one query at a time.

See :mod:`ftrace.scores.store` for what is on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ftrace.scores.ids import as_integer
from ftrace.scores.ledger import Ledger
from ftrace.scores.names import Names
from ftrace.scores.store_files import EXAMPLES, LEDGER, QUERIES, file_name
from ftrace.scores.sums import Sum
from ftrace.scores.texts import EXAMPLE_ID, QUERY_ID, Texts

_DEFAULT_KIND = "dot"


class StoredScores:
    """The content of a score store; arrays are mapped into memory when they are first needed.

    Args:
        path: The folder.
        manifest: Its parsed manifest.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def kinds(self) -> tuple[str, ...]:
        """The score kinds that the store holds."""
        return tuple(self.manifest["kinds"])

    @property
    def default_kind(self) -> str | None:
        """The kind that is taken when none is given: the only one, or ``dot``, or else ``learning``; None without."""
        if len(self.kinds) == 1:
            return self.kinds[0]
        return next((kind for kind in (_DEFAULT_KIND, "learning") if kind in self.kinds), None)

    @property
    def breakdown(self) -> dict[str, list[str]]:
        """The axes that kinds are broken down by, and the names of the parts of each."""
        parts_by_axis: dict[str, list[str]] = self.manifest.get("breakdown", {})
        return parts_by_axis

    def breakdown_of(self, kind: str) -> dict[str, list[str]]:
        """Return the axes that one kind is broken down by, and the names of the parts of each."""
        return {
            axis: parts
            for axis, parts in self.breakdown.items()
            if parts and (self.path / f"{file_name(Sum(kind, axis, parts[0]), self.breakdown)}.npy").exists()
        }

    @property
    def has_candidates(self) -> bool:
        """Whether each query has candidates of its own."""
        return self.manifest.get("num_pairs") is not None

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
        return self._stored_names("example_names", self.manifest["num_examples"])

    @cached_property
    def query_names(self) -> np.ndarray | None:
        """Names of the queries, ``[Q]``; None if ids were not made from names."""
        return self._stored_names("query_names", self.manifest["num_queries"])

    def _stored_names(self, name: str, count: int) -> np.ndarray | None:
        return self._load(name, (count,)) if (self.path / f"{name}.npy").exists() else None

    @cached_property
    def examples(self) -> Texts | None:
        """Texts of the examples; None if they aren't known."""
        return Texts(self.path / EXAMPLES, EXAMPLE_ID) if (self.path / EXAMPLES).exists() else None

    @cached_property
    def queries(self) -> Texts | None:
        """Texts of the queries; None if they aren't known."""
        return Texts(self.path / QUERIES, QUERY_ID) if (self.path / QUERIES).exists() else None

    @property
    def names_of_examples(self) -> Names:
        """The names of the examples, those that only their texts tell included."""
        return Names(self.example_ids, self.example_names, self.examples)

    @property
    def names_of_queries(self) -> Names:
        """The names of the queries, those that only their texts tell included."""
        return Names(self.query_ids, self.query_names, self.queries)

    def example_names_of(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return the names of some examples, in their order; the id itself, as text, of one without a name."""
        return self.names_of_examples.of(ids)

    def query_names_of(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return the names of some queries, in their order; the id itself, as text, of one without a name."""
        return self.names_of_queries.of(ids)

    def example_texts_of(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return the texts of some examples, in their order; the name or the id of one without a text."""
        rows = [None] * len(ids) if self.examples is None else self.examples.rows(ids)
        return [
            name if row is None else str(row["text"])
            for row, name in zip(rows, self.example_names_of(ids), strict=True)
        ]

    @cached_property
    def ledger(self) -> Ledger | None:
        """The run's ledger; None if none was kept."""
        file = self.path / LEDGER
        return Ledger.open(file, self.names_of_queries) if file.exists() else None

    def doubts(self, kind: str | None = None) -> list[str]:
        """Return the reasons why scores of a kind can't be trusted, as their writer has noted them.

        Args:
            kind: As in :meth:`matrix`.

        Returns:
            A sentence for each reason, with the remedy; none if nothing is known against the scores.
        """
        return list(self.manifest.get("doubts", {}).get(self.known_kind(kind), []))

    def check(self) -> None:
        """Make sure that all arrays are complete.

        Raises:
            ValueError: If one is missing or damaged.
        """
        _ = self.example_ids, self.query_ids
        for kind in self.kinds:
            self.values(Sum(kind))

    def matrix(self, kind: str | None = None) -> np.ndarray:
        """Map all scores of a kind from disk, ``[N, Q]``.

        Args:
            kind: One of :attr:`kinds`; default: :attr:`default_kind`.

        Raises:
            ValueError: If the store doesn't hold that kind, its file is damaged, or each query has candidates of its
                own.
        """
        if self.has_candidates:
            raise ValueError(f"{self.path}: each query has candidates of its own. Ask for scores(query_id)")
        return self.values(Sum(self.known_kind(kind)))

    def scores(self, query_id: int | str, kind: str | None = None) -> np.ndarray:
        """Return one query's scores, ``[N]``, in the order of :attr:`example_ids`; NaN if an example is no candidate.

        Args:
            query_id: The query's id, or its name if it has one.
            kind: As in :meth:`matrix`.

        Raises:
            KeyError: If the store has no such query.
            ValueError: As :meth:`matrix`.
        """
        return self.column(self.place_of_query(query_id), Sum(self.known_kind(kind)))

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
        self.check_axis(axis)
        known, place = self.known_kind(kind), self.place_of_query(query_id)
        return {part: self.column(place, Sum(known, axis, part)) for part in self.breakdown[axis]}

    def check_axis(self, axis: str) -> None:
        """Make sure that scores are broken down by an axis.

        Raises:
            ValueError: If they are not.
        """
        if axis not in self.breakdown:
            raise ValueError(f"{self.path}: expected one of the breakdowns {list(self.breakdown)}, found {axis!r}")

    def known_kind(self, kind: str | None) -> str:
        """Return a kind that the store holds; without one, the default.

        Raises:
            ValueError: If the store doesn't hold it.
        """
        if kind is None:
            if self.default_kind is not None:
                return self.default_kind
            message = (
                f"{self.path}: no kind was given, so {_DEFAULT_KIND!r} was taken, but expected one of the kinds "
                f"{list(self.kinds)}, found {_DEFAULT_KIND!r}"
            )
            raise ValueError(f"{message}. Pass kind={self.kinds[0]!r}" if self.kinds else message)
        if kind not in self.kinds:
            raise ValueError(f"{self.path}: expected one of the kinds {list(self.kinds)}, found {kind!r}")
        return kind

    def place_of_query(self, query_id: int | str) -> int:
        """Find a query's position in :attr:`query_ids`.

        Args:
            query_id: As in :meth:`scores`.

        Raises:
            KeyError: If the store has no such query; the message names the nearest ones.
            ValueError: If it is neither a whole number nor a name.
        """
        given = query_id if isinstance(query_id, str) else as_integer(query_id, "query_id", "a whole number or a name")
        names = self.names_of_queries
        place = names.place(given)
        if place is None:
            known = f"{len(self.query_ids):,} queries, {names.nearest(given)}"
            raise KeyError(f"{self.path}: no query {given!r:.80}; the store has {known}")
        return place

    def values(self, key: Sum) -> np.ndarray:
        """Map one matrix from disk: ``[N, Q]``, or ``[pairs]`` if each query has candidates of its own.

        Raises:
            ValueError: If its file is missing or damaged.
        """
        pairs, shape = self.manifest.get("num_pairs"), (self.manifest["num_examples"], self.manifest["num_queries"])
        name = file_name(key, self.breakdown)
        scores = self._load(name, shape if pairs is None else (pairs,))
        if scores.dtype.kind not in "fiu":
            raise ValueError(f"{self.path / name}.npy: expected numbers, found {scores.dtype}. Write the store anew.")
        return scores

    def column(self, place: int, key: Sum) -> np.ndarray:
        """Read one query's column of a matrix, ``[N]``; NaN if an example is no candidate.

        Args:
            place: The query's position in :attr:`query_ids`.
            key: The matrix.

        Raises:
            ValueError: As :meth:`values`.
        """
        if not self.has_candidates:
            return np.array(self.values(key)[:, place])
        offsets = self._load("candidate_offsets", (self.manifest["num_queries"] + 1,))
        pairs = slice(int(offsets[place]), int(offsets[place + 1]))
        values = self.values(key)
        scores = np.full(len(self.example_ids), np.nan, values.dtype)
        scores[np.searchsorted(self.example_ids, self._load("candidate_ids", values.shape)[pairs])] = values[pairs]
        return scores

    def _load(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        file = self.path / f"{name}.npy"
        try:
            array: np.ndarray = np.load(file, mmap_mode="r" if all(shape) else None, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{file} is missing or damaged ({error}). Write the store anew.") from error
        if array.shape != shape:
            raise ValueError(f"{file}: expected shape {shape} as in the manifest, found {array.shape}")
        return array
