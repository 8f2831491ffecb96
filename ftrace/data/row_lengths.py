"""How long a data set's rows are in tokens, and which are longer than they may be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute

from ftrace.data.chats import size_of_template
from ftrace.data.collators import TextCollator
from ftrace.data.turns import is_chat

_SPECIAL_TOKENS = 4  # that a collator adds to a row, at most
_ROWS_AT_A_TIME = 1000
_CHECKED_CHATS = 100


class RowLengths:
    """Lengths of training rows and queries.

    Only rows with more bytes than a limit has tokens are tokenized to be measured, since a token holds at least a byte.
    (A tokenizer that writes one character as many may make more of a row; it is cut as any other, but not counted.)

    Args:
        train: The training rows.
        queries: The queries.
        collate: A collator that cuts nothing.
        longest: How many tokens a row keeps; None keeps all.
        who: Who says so.

    Raises:
        ValueError: If rows are chats that the tokenizer's template doesn't take.
    """

    def __init__(
        self, train: datasets.Dataset, queries: datasets.Dataset, collate: TextCollator, longest: int | None, who: str
    ) -> None:
        self._tables = {"training rows": train, "queries": queries}
        self._collate = collate
        self._who = who
        self.longest = longest
        for rows in self._tables.values():
            self._check_chats(rows)

    def described(self) -> Iterator[str]:
        """Say how many rows are cut; nothing where there is no limit."""
        if self.longest is None:
            return
        parts = []
        for name, lengths in self._longer(self.longest).items():
            most = f", the longest of {max(lengths):,} tokens" if lengths else ""
            parts.append(f"{len(lengths):,} of {len(self._tables[name]):,} {name} are longer and cut{most}")
        yield f"Rows keep {self.longest:,} tokens ({self._who}): {'; '.join(parts)}"

    def check(self, positions: int) -> None:
        """Refuse rows that are longer than a model has positions.

        Args:
            positions: How many it has.

        Raises:
            ValueError: If rows keep more tokens, and there are such rows.
        """
        if self.longest is not None and self.longest <= positions:
            return
        for name, lengths in self._longer(positions).items():
            if lengths:
                raise ValueError(
                    f"expected {name} of at most {positions:,} tokens, for which the model has positions, found "
                    f"{len(lengths):,} longer ones, of up to {max(lengths):,}. Cut them with max_length: {positions}"
                )

    def _longer(self, limit: int) -> dict[str, list[int]]:
        """Return the lengths of rows with more tokens than a limit, by the name of the table."""
        longer = {}
        for name, rows in self._tables.items():
            places = np.flatnonzero(self._bytes(rows) + _SPECIAL_TOKENS > limit)
            lengths = []
            for start in range(0, len(places), _ROWS_AT_A_TIME):
                some = rows.select(places[start : start + _ROWS_AT_A_TIME]).to_list()
                lengths += self._collate.lengths(some)
            longer[name] = [length for length in lengths if length > limit]
        return longer

    @cached_property
    def _of_template(self) -> int:
        return size_of_template(self._collate.tokenizer)

    def _bytes(self, rows: datasets.Dataset) -> np.ndarray:
        """Return about how many bytes each row has as text, int64 ``[N]``, and in no case fewer."""
        names = ["inputs_pretokenized", "targets_pretokenized", *(["turns"] if "turns" in rows.column_names else [])]
        table = rows.select_columns(names).with_format("arrow")[:]
        sizes = sum(_numbers(pa.compute.binary_length(table[name])) for name in names[:2])
        if len(names) > 2 and any(is_chat(turns) for turns in table["turns"].to_pylist()):
            sizes = sizes + self._of_template * _numbers(pa.compute.list_value_length(table["turns"]))
        return np.asarray(sizes)

    def _check_chats(self, rows: datasets.Dataset) -> None:
        """Tokenize the first chats, so that a template that doesn't take them is known before training."""
        if "turns" in rows.column_names:
            first = rows.select(range(min(_CHECKED_CHATS, len(rows)))).to_list()
            chats = [row for row in first if is_chat(row["turns"])]
            if chats:
                self._collate.lengths(chats)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pa.compute.fill_null(column, 0).to_numpy(), dtype=np.int64)
