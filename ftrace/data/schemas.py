"""Columns that every fact-tracing data set has on disk."""

from __future__ import annotations

import pyarrow as pa

TEXT = (("inputs_pretokenized", pa.string()), ("targets_pretokenized", pa.string()))


def train_schema(name: str) -> pa.Schema:
    """Return the schema of ``train.parquet``; ``name`` is the column that names a row."""
    return pa.schema([("example_id", pa.int64()), *TEXT, (name, pa.string()), ("facts", pa.list_(pa.string()))])


def query_schema(*names: str) -> pa.Schema:
    """Return the schema of ``queries.parquet``; ``names`` are further columns of text."""
    return pa.schema(
        [
            ("query_id", pa.int64()),
            *TEXT,
            *((name, pa.string()) for name in names),
            ("fact", pa.string()),
            ("answers", pa.list_(pa.string())),
            ("proponent_ids", pa.list_(pa.int64())),
        ]
    )
