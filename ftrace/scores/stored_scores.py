"""What is read of a score store: its ids, names and texts, and its scores, one query at a time.

See :mod:`ftrace.scores.store` for what is on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ftrace.files.digests import DamagedError, FolderCheck
from ftrace.scores.answer_record import RIGHT_FILE, STEPS_FILE, AnswerRecord
from ftrace.scores.ids import as_integer, is_ascending, places_of
from ftrace.scores.ledger import Ledger
from ftrace.scores.names import Names
from ftrace.scores.store_files import EXAMPLES, LEDGER, QUERIES, check_offsets, file_name
from ftrace.scores.stored_arrays import FLOATS, INTEGERS, NAMES, StoredArrays
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
        self._files = FolderCheck(path, manifest.get("files"))
        self._arrays = StoredArrays(path, self._files)

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
            if parts and self._arrays.has(file_name(Sum(kind, axis, parts[0]), self.breakdown))
        }

    @property
    def has_candidates(self) -> bool:
        """Whether each query has candidates of its own."""
        return self.manifest.get("num_pairs") is not None

    @cached_property
    def example_ids(self) -> np.ndarray:
        """``[N]`` int64, ascending."""
        ids = self._ids("example_ids", self.manifest["num_examples"])
        if not is_ascending(ids):
            raise self._damaged("example_ids", "expected ids in ascending order, each once")
        return ids

    @cached_property
    def query_ids(self) -> np.ndarray:
        """``[Q]`` int64."""
        ids = self._ids("query_ids", self.manifest["num_queries"])
        if len(np.unique(ids)) < len(ids):
            raise self._damaged("query_ids", "expected each id once")
        return ids

    def _ids(self, name: str, count: int) -> np.ndarray:
        return self._arrays.whole(name, (count,), INTEGERS)

    def _damaged(self, name: str, message: str) -> DamagedError:
        return DamagedError(f"{str(self.path / name)!r}.npy is damaged: {message}. Write the store anew")

    @cached_property
    def example_names(self) -> np.ndarray | None:
        """Names of the examples, ``[N]``; None if ids were not made from names."""
        return self._stored_names("example_names", self.manifest["num_examples"])

    @cached_property
    def query_names(self) -> np.ndarray | None:
        """Names of the queries, ``[Q]``; None if ids were not made from names."""
        return self._stored_names("query_names", self.manifest["num_queries"])

    def _stored_names(self, name: str, count: int) -> np.ndarray | None:
        return self._arrays.whole(name, (count,), NAMES) if self._arrays.has(name) else None

    @cached_property
    def examples(self) -> Texts | None:
        """Texts of the examples; None if they aren't known."""
        return self._texts(EXAMPLES, EXAMPLE_ID)

    @cached_property
    def queries(self) -> Texts | None:
        """Texts of the queries; None if they aren't known."""
        return self._texts(QUERIES, QUERY_ID)

    def _texts(self, name: str, key: str) -> Texts | None:
        if not self._files.has(name):
            return None
        self._files.check(name)
        return Texts(self.path / name, key)

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
        return _texts_of(self.examples, ids, self.example_names_of(ids))

    def query_texts_of(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return the texts of some queries, in their order; the name or the id of one without a text."""
        return _texts_of(self.queries, ids, self.query_names_of(ids))

    @property
    def has_ledger(self) -> bool:
        """Whether the run's ledger was kept."""
        return self._files.has(LEDGER)

    @cached_property
    def ledger(self) -> Ledger | None:
        """The run's ledger; None if none was kept."""
        if not self.has_ledger:
            return None
        self._files.check(LEDGER)
        return Ledger.open(self.path / LEDGER, self.names_of_queries, self._stored_answers)

    @cached_property
    def answers(self) -> AnswerRecord | None:
        """When queries were answered right; None if nobody asked.

        Stores of earlier versions have it from their ledger, which says it of the ends of intervals: what was right
        before the first one is unknown.
        """
        stored = self._stored_answers
        if stored is None and self.ledger is not None:
            stored = self.ledger.answers
        return stored if stored is not None and stored.knows else None

    @cached_property
    def _stored_answers(self) -> AnswerRecord | None:
        count = self.manifest.get("num_evaluations")
        if count is None:
            return None
        steps = self._arrays.whole(STEPS_FILE, (count,), INTEGERS)
        right = self._arrays.whole(RIGHT_FILE, (count, self.manifest["num_queries"]), ("int8",))
        try:
            return AnswerRecord(steps, self.query_ids, right)
        except ValueError as error:
            raise self._damaged(RIGHT_FILE, str(error)) from error

    def doubts(self, kind: str | None = None) -> list[str]:
        """Return the reasons why scores of a kind can't be trusted, as their writer has noted them.

        Args:
            kind: As in :meth:`matrix`.

        Returns:
            A sentence for each reason, with the remedy; none if nothing is known against the scores.
        """
        return list(self.manifest.get("doubts", {}).get(self.known_kind(kind), []))

    def check(self) -> None:
        """Make sure that no file is missing or cut short, without reading what may be large.

        Raises:
            DamagedError: If one is.
        """
        self._files.check_sizes()
        _ = self.example_ids, self.query_ids
        for key in self._keys():
            self._arrays.check_head(self._name_of(key), self._shape, self._types_of(key))

    def checked_files(self) -> Iterator[str]:
        """Read everything, and yield the path of each file that is what was written.

        Stores of version 1 have no digests: of their arrays, ids, types and shapes are checked.

        Raises:
            DamagedError: If one is missing or not what was written.
        """
        for name in self._files.check_all():
            yield str(self.path / name)
        self.check()
        _ = self.example_names, self.query_names, self.ledger, self.answers
        for texts in (self.examples, self.queries):
            _ = None if texts is None else texts.ids
        for place in range(len(self.query_ids)) if self.has_candidates else ():
            self._candidates(place)

    def _keys(self) -> list[Sum]:
        """List the matrices that the store holds."""
        parts = [
            Sum(kind, axis, part)
            for kind in self.kinds
            for axis, names in self.breakdown_of(kind).items()
            for part in names
        ]
        return [*map(Sum, self.kinds), *parts]

    def dtype_of(self, kind: str) -> np.dtype:
        """Return the type of a kind's scores: float32 or float64."""
        noted = self.manifest.get("dtype", {}).get(kind)
        return self.values(Sum(kind)).dtype if noted is None else np.dtype(noted)

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

        A large file is verified in the background. If it is damaged, a warning says so as soon as that is known;
        :meth:`column` verifies what it returns.

        Raises:
            DamagedError: If its file is missing or damaged.
        """
        return self._arrays.whole(self._name_of(key), self._shape, self._types_of(key))

    def column(self, place: int, key: Sum, rows: np.ndarray | None = None) -> np.ndarray:
        """Read one query's column of a matrix, ``[N]``; NaN if an example is no candidate.

        Args:
            place: The query's position in :attr:`query_ids`.
            key: The matrix.
            rows: Positions in :attr:`example_ids`, ``[n]``, if only these are wanted.

        Raises:
            DamagedError: If what is read is missing or damaged.
        """
        name, types = self._name_of(key), self._types_of(key)
        if not self.has_candidates:
            column = self._arrays.part(name, self._shape, types, place)
            return np.array(column if rows is None else column[rows])
        pairs, places = self._candidates(place)
        values = self._arrays.part(name, self._shape, types, pairs)
        scores = np.full(len(self.example_ids), np.nan, values.dtype)
        scores[places] = values
        return scores if rows is None else scores[rows]

    @property
    def _shape(self) -> tuple[int, ...]:
        pairs = self.manifest.get("num_pairs")
        return (self.manifest["num_examples"], self.manifest["num_queries"]) if pairs is None else (pairs,)

    def _name_of(self, key: Sum) -> str:
        return file_name(key, self.breakdown)

    def _types_of(self, key: Sum) -> tuple[str, ...]:
        noted = self.manifest.get("dtype", {}).get(key.kind)
        return FLOATS if noted is None or key.axis else (noted,)

    @cached_property
    def _offsets(self) -> np.ndarray:
        offsets = self._arrays.whole("candidate_offsets", (self.manifest["num_queries"] + 1,), INTEGERS)
        try:
            check_offsets(offsets, self.manifest["num_queries"], self.manifest["num_pairs"])
        except ValueError as error:
            raise self._damaged("candidate_offsets", str(error)) from error
        return offsets

    def _candidates(self, place: int) -> tuple[slice, np.ndarray]:
        """Find a query's pairs, and the positions of their examples in :attr:`example_ids`."""
        pairs = slice(int(self._offsets[place]), int(self._offsets[place + 1]))
        ids = self._arrays.part("candidate_ids", self._shape, INTEGERS, pairs)
        places = places_of(np.asarray(ids), self.example_ids)
        if (places < 0).any() or len(np.unique(places)) < len(places):
            raise self._damaged("candidate_ids", f"expected known ids, each once, for {self.query_ids[place]}")
        return pairs, places


def _texts_of(texts: Texts | None, ids: Sequence[int] | np.ndarray, names: list[str]) -> list[str]:
    """Return the texts of some ids, and the name of one without a text."""
    rows = [None] * len(ids) if texts is None else texts.rows(ids)
    return [name if row is None else str(row["text"]) for row, name in zip(rows, names, strict=True)]
