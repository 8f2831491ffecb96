"""Texts that a function of the user's says of batches, collected while the model trains."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ftrace.online.batches import batch_ids, batches_in
from ftrace.online.messages import warn
from ftrace.online.processes import gather_rows, num_processes, process_rank
from ftrace.online.sorted_ids import SortedIds
from ftrace.online.state_files import find_hashed, write_hashed
from ftrace.online.texts.shown_values import shown
from ftrace.online.undisturbed.random_state import isolated_random_state
from ftrace.scores.text_tables import joined, text_table

_ROWS_TOGETHER = 10_000


class _ChangedBatchError(ValueError):
    """A function that describes batches changed one."""


class DescribedBatches:
    """The texts of the rows of batches, which this process has seen.

    The function is called only for batches with an id that has no text yet, so from the second epoch on it costs
    nothing.

    Args:
        describe: ``(batch) -> columns``, each a list with an entry for each row of the batch, at least "text".
        key: The key of the ids in a batch.
        option: The argument by which the user can name another key; used in messages.
        of: "examples" or "queries", for messages.
        who: Whose messages these are.
        wanted: The ids whose texts are kept; None: all.
    """

    def __init__(
        self,
        describe: Callable[[Any], Any],
        key: str | int,
        option: str,
        of: str,
        who: str,
        wanted: Sequence[int] | None = None,
    ) -> None:
        self._describe = describe
        self._key = key
        self._option = option
        self._of = of
        self._who = who
        self._wanted = None if wanted is None else np.unique(np.asarray(wanted, np.int64))
        self._known = SortedIds()
        self._parts: list[pa.Table] = []
        self._recent: list[pa.Table] = []  # small ones, which are put together later
        self._columns: pa.Table | None = None  # no rows, but the types of all columns so far
        self._num_saved = 0  # parts that are in files
        self._entries: list[dict[str, str]] = []  # of these files
        self._has_warned = False

    def add(self, batch: Any, names: dict[int, str]) -> None:
        """Describe the rows of a batch that have no texts yet.

        Args:
            batch: The batch; a list or dictionary of batches, as several dataloaders give it, is described one by one.
            names: By id that was made from a name, this name.

        Raises:
            ValueError: If the function fails, or returns anything but columns of texts, for the first batch. For a
                later batch that is a warning, and its rows have no texts.
        """
        several = batches_in(batch, self._key)
        for part in [batch] if several is None else several.values():
            ids = batch_ids(part, self._key, self._option, names).cpu().numpy()
            new, places = np.unique(ids, return_index=True)
            is_new = ~self._known.contain(new)
            if self._wanted is not None:
                is_new &= np.isin(new, self._wanted)
            if is_new.any():
                self._add(part, len(ids), new[is_new], places[is_new], names)

    def _add(self, batch: Any, count: int, new: np.ndarray, places: np.ndarray, names: Mapping[int, str]) -> None:
        try:
            columns = self._checked(self._call(batch), count)
            ids_and_places = zip(new.tolist(), places.tolist(), strict=True)
            rows = [{"id": i, **{name: values[p] for name, values in columns.items()}} for i, p in ids_and_places]
            if names and "name" not in columns:
                rows = [{**row, "name": names.get(row["id"])} for row in rows]
            table = text_table(map(shown, rows), "id")
            self._columns = table.slice(0, 0) if self._columns is None else joined([self._columns, table]).slice(0, 0)
        except _ChangedBatchError:
            raise  # at any batch: the model would train on other data
        except ValueError as error:
            message = f"{self._who}: describe, for a batch of {self._of}: {error}"
            if self._columns is None:
                raise ValueError(message) from error
            if not self._has_warned:
                self._has_warned = True
                warn(
                    f"{message}. Rows of this and of all such later batches have no texts; give them to the store "
                    "afterwards, with ScoreStore.put_texts"
                )
            return
        self._known.add(new)
        self._recent.append(table)
        if sum(map(len, self._recent)) >= _ROWS_TOGETHER:
            self._put_together()

    def _call(self, batch: Any) -> Any:
        try:
            before = _versions(batch)
            with isolated_random_state(), torch.no_grad():
                columns = self._describe(copy.copy(batch))  # the model trains on the batch as it is
        except Exception as error:  # the user's function may raise anything
            keys = f". The batch has the keys {list(batch)}" if isinstance(batch, Mapping) else ""
            raise ValueError(f"the function raised {type(error).__name__}: {error}{keys}") from error
        if _versions(batch) != before:
            raise _ChangedBatchError(
                f"{self._who}: describe, for a batch of {self._of}: expected a function that leaves the batch as it "
                "is, found that it changed a tensor in place. Let it change a copy: tensor.clone()"
            )
        return columns

    def _checked(self, columns: Any, count: int) -> dict[str, Sequence[Any]]:
        """Return the columns as lists, once they are what they should be."""
        if not isinstance(columns, Mapping):
            raise ValueError(
                f'expected columns such as {{"text": [...], "answer": [...]}}, found {type(columns).__name__}'
            )
        if "text" not in columns:
            near = difflib.get_close_matches("text", map(str, columns), n=1)
            nearest = f"; nearest: {near[0]!r}" if near else ""
            raise ValueError(f'expected a column "text", found {list(columns)}{nearest}')
        lists: dict[str, Sequence[Any]] = {}
        for name, values in columns.items():
            if name == self._key:  # ids are the batch's own
                continue
            values = values.tolist() if hasattr(values, "tolist") else values
            is_list = hasattr(values, "__len__") and not isinstance(values, str | bytes | Mapping)
            if not is_list or len(values) != count:
                shown_values = f"{len(values)} of them" if is_list else f"{values!r:.60}"
                raise ValueError(f'expected {count} values under "{name}", one for each row, found {shown_values}')
            lists[str(name)] = list(values)
        wrong = [value for value in lists["text"] if not isinstance(value, str)]
        if wrong:
            raise ValueError(f'expected texts under "text", found {wrong[0]!r:.60}')
        return lists

    def _put_together(self) -> None:
        if self._recent:
            self._parts.append(joined(self._recent).combine_chunks())
            self._recent = []

    def table(self) -> pa.Table | None:
        """Return the texts that this process has, with the column "id"; None without any."""
        self._put_together()
        return joined(self._parts) if self._parts else None

    def gather(self) -> pa.Table | None:
        """Collect the texts of all processes on process 0, which must all call this; None without any.

        An id may have several rows, in the order of processes.
        """
        table = self.table()
        if num_processes() == 1:
            return table
        sink = pa.BufferOutputStream()
        if table is not None:
            pq.write_table(table, sink, compression="zstd")
        everywhere = gather_rows(torch.frombuffer(bytearray(sink.getvalue()) or bytearray(1), dtype=torch.uint8))
        if everywhere is None:
            return None
        contents = [content.numpy() for content in everywhere if len(content) > 1]
        return joined([pq.read_table(pa.BufferReader(content)) for content in contents]) if contents else None

    # State

    def save(self, folder: Path) -> list[dict[str, str]]:
        """Write the texts that are in no file yet to a new one.

        Returns:
            Names and hashes of all files with this process's texts.
        """
        self._put_together()
        unsaved = self._parts[self._num_saved :]
        if unsaved:
            name = f"texts-process-{process_rank()}"
            entry = write_hashed(folder, name, ".parquet", lambda file: pq.write_table(joined(unsaved), file))
            self._entries.append(entry)
            self._num_saved = len(self._parts)
        return list(self._entries)

    def load(self, entries: Sequence[Mapping[str, str]], fallback: Path) -> None:
        """Take over the texts in some files; one that is missing or damaged is a warning.

        Args:
            entries: What :meth:`save` returned.
            fallback: The folder to search if the files aren't where they were written.
        """
        for entry in entries:
            try:
                table = pq.read_table(find_hashed(entry, fallback, "texts", self._who))
            except (ValueError, OSError) as error:
                warn(f"{error}. Its examples have no texts until they are seen again")
                continue
            self._parts.append(table)
            self._entries.append(dict(entry))
            self._columns = joined([*([] if self._columns is None else [self._columns]), table]).slice(0, 0)
            self._known.add(np.unique(table["id"].to_numpy()))
        self._num_saved = len(self._parts)


def _versions(batch: Any) -> list[int]:
    """Return how often the tensors of a batch were changed in place."""
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else [batch]
    tensors = (value for value in values if isinstance(value, torch.Tensor) and not value.is_inference())
    return [tensor._version for tensor in tensors]
