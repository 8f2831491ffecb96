"""BM25 over sentences with the answer filled in, on both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ftrace.data import Bm25Index, fill_in
from ftrace.data.bm25_index import DELTA, K1, B
from ftrace.scores import ScoreStore


def score_by_bm25(
    rows: Sequence[Mapping[str, Any]], queries: Sequence[Mapping[str, Any]], output_dir: str | Path
) -> ScoreStore:
    """Score all rows for all queries.

    Args:
        rows: Training rows with ``example_id``, ``inputs_pretokenized`` and ``targets_pretokenized``.
        queries: Query rows with ``query_id`` and the same text fields.
        output_dir: Where the store goes.

    Returns:
        A store of kind ``bm25``.
    """
    index = Bm25Index([_words(row) for row in rows])
    scores = np.stack([index.scores(_words(query)) for query in queries], axis=1)
    manifest = {"method": "BM25", "formula": "BM25Plus", "k1": K1, "b": B, "delta": DELTA, "tokens": 'split(" ")'}
    example_ids = np.array([row["example_id"] for row in rows])
    query_ids = np.array([query["query_id"] for query in queries])
    return ScoreStore.write(output_dir, example_ids, query_ids, {"bm25": scores}, manifest)


def _words(row: Mapping[str, Any]) -> list[str]:
    return fill_in(row["inputs_pretokenized"], row["targets_pretokenized"]).split(" ")
