"""Scores on disk: a folder of plain ``.npy`` arrays and a JSON manifest.

    manifest.json      format, kinds, shape, dtype, size and digest of each file, and what the writer says about how the
                       scores were computed
    example_ids.npy    int64 [N], ascending
    query_ids.npy      int64 [Q]
    <kind>.npy         float32 (float64 on request) [N, Q], in Fortran order: one query's scores are contiguous
    <kind>.<axis>.<n>.npy   the same for the n-th part, if the kind is broken down; manifest.json names the parts
    example_names.npy, query_names.npy   the names, if ids were made from names
    ledger.parquet     the run's ledger, if one was kept
    evaluated_steps.npy, answered_right.npy   when each query was right, if anybody asked (:class:`AnswerRecord`)
    examples.parquet, queries.parquet   texts by id, if they are known (:class:`ftrace.scores.Texts`)

If each query has candidates of its own, scores are [pairs], query by query. candidate_ids.npy [pairs] then says which
example each score belongs to, and candidate_offsets.npy [Q + 1] where each query begins.

Without ftrace: ``numpy.load("dot.npy", mmap_mode="r")[:, column]``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from ftrace.arguments import Name, checked
from ftrace.files.whole_files import whole_folder
from ftrace.scores.answer_record import RIGHT_FILE, STEPS_FILE, AnswerRecord
from ftrace.scores.ids import as_ids
from ftrace.scores.labelled_arrays import labelled_array
from ftrace.scores.ledger import Ledger
from ftrace.scores.ranking import strongest
from ftrace.scores.row_ranges import ScoreRows, write_in_columns
from ftrace.scores.store_files import (
    LEDGER,
    check_kinds,
    check_names,
    check_offsets,
    check_replaceable,
    file_name,
    make_facts,
    parts_of,
    read_manifest,
    take_over,
    write_manifest,
    write_texts,
)
from ftrace.scores.store_views import describe_store, store_html
from ftrace.scores.stored_scores import StoredScores
from ftrace.scores.sums import Sum
from ftrace.scores.tables import matrix_table, ranked_table
from ftrace.scores.texts import Texts, check_texts
from ftrace.shown_text import plain_lines

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


class ScoreStore(StoredScores):
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
        >>> store.to_pandas(0, k=1)[["example_id", "dot", "share"]].to_dict("list")
        {'example_id': [3], 'dot': [0.5], 'share': [0.5]}
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        super().__init__(path, manifest)
        self._warned_of: set[str] = set()

    @classmethod
    @checked
    def open(cls, path: Name | os.PathLike[str]) -> ScoreStore:
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
    @checked
    def write(
        cls,
        path: Name | os.PathLike[str],
        example_ids: Sequence[int] | np.ndarray,
        query_ids: Sequence[int] | np.ndarray,
        scores: Mapping[str, ScoreRows] | Mapping[Sum, ScoreRows],
        manifest: Mapping[str, Any] | None = None,
        *,
        candidate_offsets: np.ndarray | None = None,
        ledger: Ledger | None = None,
        answers: AnswerRecord | None = None,
        names: Mapping[int, str] | None = None,
        examples: Texts | None = None,
        queries: Texts | None = None,
    ) -> ScoreStore:
        """Write a store whole or not at all.

        Args:
            path: The folder; an earlier store there is replaced, anything else is an error.
            example_ids: ``[N]`` int64.
            query_ids: ``[Q]`` int64.
            scores: For each kind (or part of one, as :class:`Sum`), ``[N, Q]``: an array, or what can be asked for rows
                of it, of which only a few are in memory at a time.
            manifest: What to note about how the scores were computed; anything that JSON can hold.
            candidate_offsets: ``[Q + 1]`` int64, if each query has candidates of its own: where each query begins. Then
                ``example_ids`` and each of the scores are ``[pairs]``, query by query.
            ledger: The run's ledger.
            answers: When queries were right; default: as the ledger says.
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
        check_kinds(key.kind for key in keyed)
        parts = parts_of(keyed)
        check_names(keyed, parts)
        arrays: dict[str, np.ndarray] = {}
        example_ids, query_ids = as_ids(example_ids, "example_ids"), as_ids(query_ids, "query_ids")
        if candidate_offsets is not None:
            check_offsets(np.asarray(candidate_offsets), len(query_ids), len(example_ids))
            offsets = np.asarray(candidate_offsets, np.int64)
            arrays = {"candidate_ids": example_ids, "candidate_offsets": offsets}
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
            if np.dtype(values.dtype).kind not in "fiub":
                raise ValueError(f"expected scores of kind {key.kind!r} that are real numbers, found {values.dtype}")
        facts = make_facts(list(keyed), example_ids, query_ids)
        facts["num_pairs"] = None if candidate_offsets is None else shape[0]
        dtypes = {
            key: np.dtype(np.float64 if values.dtype == np.float64 else np.float32) for key, values in keyed.items()
        }
        facts["dtype"] = {kind: str(dtypes[Sum(kind)]) for kind in facts["kinds"]}
        with whole_folder(folder, sync=True, only_earlier=True) as temporary:
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array, allow_pickle=False)
            for key, values in keyed.items():
                write_in_columns(temporary / f"{file_name(key, parts)}.npy", values, order, dtypes[key])
            if ledger is not None:
                ledger.write(temporary / LEDGER)
                answers = ledger.answers if answers is None else answers
            if answers is not None and answers.knows:
                facts["num_evaluations"] = len(answers.steps)
                np.save(temporary / f"{STEPS_FILE}.npy", answers.steps, allow_pickle=False)
                np.save(temporary / f"{RIGHT_FILE}.npy", answers.of_queries(query_ids), allow_pickle=False)
            write_texts(temporary, examples, example_ids, queries, query_ids)
            write_manifest(temporary, manifest or {}, facts)
        return cls.open(folder)

    def with_texts(self, examples: Texts | None = None, queries: Texts | None = None) -> ScoreStore:
        """Return the same store with other texts, which are not written to disk; None keeps those that it has."""
        check_texts(examples, queries)
        other = ScoreStore(self.path, self.manifest)
        other._files, other._arrays = self._files, self._arrays  # what is verified, and mapped, once
        other.examples = examples if examples is not None else self.examples
        other.queries = queries if queries is not None else self.queries
        return other

    def put_texts(self, examples: Texts | None = None, queries: Texts | None = None) -> None:
        """Write texts into the store's folder, in place of earlier ones; None keeps those that it has.

        The folder is replaced by one that shares its other files, so that it is whole at any time.
        """
        with whole_folder(self.path) as temporary:
            write_texts(temporary, examples, self.example_ids, queries, self.query_ids)
            take_over(self.path, temporary)
        super().__init__(self.path, read_manifest(self.path))
        for name in ("examples", "queries", "ledger", "answers"):  # the ledger has the queries' names
            self.__dict__.pop(name, None)

    def _warn_of_doubts(self, kind: str) -> None:
        """Warn once of the doubts about a kind."""
        if kind not in self._warned_of:
            self._warned_of.add(kind)
            for sentence in self.doubts(kind):
                warnings.warn(plain_lines(f"{self.path}: {sentence}"), stacklevel=3)

    @overload
    def top(
        self,
        query_id: int | str,
        k: int = ...,
        kind: str | None = ...,
        *,
        largest: bool = ...,
        texts: Literal[False] = ...,
    ) -> tuple[np.ndarray, np.ndarray]: ...

    @overload
    def top(
        self, query_id: int | str, k: int = ..., kind: str | None = ..., *, largest: bool = ..., texts: Literal[True]
    ) -> tuple[np.ndarray, np.ndarray, list[str]]: ...

    def top(
        self,
        query_id: int | str,
        k: int = 10,
        kind: str | None = None,
        *,
        largest: bool = True,
        texts: bool = False,
    ) -> tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, list[str]]:
        """Find a query's strongest proponents, or with ``largest=False`` its strongest opponents.

        If there are :meth:`doubts` about the kind, the first call warns.

        Args:
            query_id: The query's id, or its name if it has one.
            k: How many.
            kind: One of :attr:`kinds`; default: :attr:`default_kind`.
            largest: Whether the largest scores come first, or the smallest.
            texts: Whether the examples' texts are returned, too.

        Returns:
            Example ids ``[k]`` and their scores ``[k]``, strongest first, equal scores in ascending order of ids.
            Examples whose score is NaN or infinite are left out, so there may be fewer than k. With ``texts``, also
            their texts ``[k]``; where an example has none, its name or its id stands in.

        Raises:
            KeyError, ValueError: As :meth:`scores`; ValueError also if k is not a whole number from 1 on.
        """
        scores = self.scores(query_id, kind)
        order = strongest(scores, k, largest=largest)
        self._warn_of_doubts(self.known_kind(kind))
        ids = self.example_ids[order]
        return (ids, scores[order], self.example_texts_of(ids)) if texts else (ids, scores[order])

    def to_pandas(
        self,
        query_id: int | str | Sequence[int | str] | None = None,
        kind: str | None = None,
        k: int | None = None,
        *,
        largest: bool = True,
    ) -> pd.DataFrame:
        """Make a table for pandas: of all scores of a kind, or of the strongest examples of some queries.

        Args:
            query_id: A query's id or name, or several. Without it and without ``k``, the table is of all scores.
            kind: The kind that is tabled, or ranked by; default: :attr:`default_kind`.
            k: How many examples of each query; default: 10. Without ``query_id``, those of each of the store's queries.
            largest: Whether the strongest proponents are listed, or the strongest opponents.

        Returns:
            All scores: a row for each example and a column for each query, labelled with names if the ids were made
            from names, else with ids; NaN if an example is no candidate.
            The strongest: a row for each, with ``query_id``, ``rank`` from 1, ``example_id``, its scores of all kinds,
            ``share`` (its score as a share of the query's largest absolute score); and as far as they are known,
            ``query_name``, ``example_name``, ``states_fact`` (whether it states the query's fact), ``text`` and
            ``answer``.

        Raises:
            ValueError: If the table would be larger than 200 MB.
            KeyError, ValueError: As :meth:`top`.
        """
        if query_id is None and k is None:
            return matrix_table(self, self.known_kind(kind))
        self._warn_of_doubts(self.known_kind(kind))
        queries: Sequence[int | str] = self.query_ids.tolist()
        if query_id is not None:
            queries = [query_id] if np.ndim(query_id) == 0 else list(query_id)  # type: ignore[list-item, arg-type]
        return ranked_table(self, queries, self.known_kind(kind), 10 if k is None else k, largest=largest)

    def to_xarray(self, axis: str | None = None) -> xr.DataArray:
        """Label all scores for xarray: kinds x examples x queries, read from disk when they are asked for.

        Args:
            axis: One of :attr:`breakdown`. A last dimension of this name then has the parts, which add up to the score.

        Returns:
            Dimensions ``kind``, ``example`` and ``query``, labelled with names if the ids were made from names, else
            with ids; NaN if an example is no candidate. ``.sel(kind="dot", query=3)`` reads one column from disk.

        Raises:
            ImportError: If xarray is not installed.
            ValueError: If scores are not broken down by this axis.
        """
        return labelled_array(self, axis)

    def __repr__(self) -> str:
        return describe_store(self)

    def _repr_html_(self) -> str:
        return store_html(self)
