"""What a person reads of a data set's rows: the tables that score stores keep beside scores."""

from __future__ import annotations

from collections.abc import Callable

import datasets
import pyarrow as pa

from ftrace.data.text import answers_in, fill_in

_ROWS_AT_A_TIME = 10_000
_NAMES = ("name", "guid", "uuid")  # by which sources name their rows

TextOfRow = Callable[[str, str], str]


def describe_examples(rows: datasets.Dataset) -> pa.Table:
    """Describe training rows.

    Args:
        rows: As :attr:`ftrace.data.FactData.train_rows`.

    Returns:
        ``example_id``; ``text``, the sentence with its answers filled in; ``answer``, the answers joined by commas,
        null in rows that are text alone; and ``facts``, ``name`` and ``sentence_id``, where there are any.
    """
    return _table(rows, "example_id", fill_in, ("facts", "sentence_id"))


def describe_queries(rows: datasets.Dataset) -> pa.Table:
    """Describe queries.

    Args:
        rows: As :attr:`ftrace.data.FactData.query_rows`.

    Returns:
        ``query_id``; ``text``, the prompt; ``answer``, the right one as the query spells it; ``answers``, all that are
        accepted; and ``fact``, ``proponent_ids`` and ``name``, where there are any.
    """
    return _table(rows, "query_id", _prompt, ("answers", "fact", "proponent_ids"))


def _prompt(inputs: str, targets: str) -> str:
    return inputs or targets  # a query that is text alone asks for all of it


def _table(rows: datasets.Dataset, key: str, text_of: TextOfRow, kept: tuple[str, ...]) -> pa.Table:
    """Make the table chunk by chunk; columns that are kept as they are stay mapped from disk."""
    name = next((name for name in _NAMES if name in rows.column_names), None)
    kept = tuple(column for column in kept if column in rows.column_names)
    wanted = [key, "inputs_pretokenized", "targets_pretokenized", *kept, *([name] if name else [])]
    chunks = []
    for chunk in rows.select_columns(wanted).with_format("arrow").iter(_ROWS_AT_A_TIME):
        pairs = list(zip(*(chunk[column].to_pylist() for column in wanted[1:3]), strict=True))
        texts = [text_of(inputs, targets) for inputs, targets in pairs]
        answers = [", ".join(answers_in(targets)) if inputs else None for inputs, targets in pairs]
        columns = {key: chunk[key], "text": pa.array(texts, pa.string()), "answer": pa.array(answers, pa.string())}
        columns |= {column: chunk[column] for column in kept}
        chunks.append(pa.table(columns | ({"name": chunk[name]} if name else {})))
    return pa.concat_tables(chunks)
