"""BM25 over sentences with the answer filled in, on both sides.

The formula is that of ``rank_bm25.BM25Plus`` with its defaults (k1 1.5, b 0.75, delta 1), as in the code of Akyürek et
al. 2022; a summary of the paper prints it with + 1 inside the denominator. ``bm25s`` computes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np

from ftrace.data import fill_in
from ftrace.scores import ScoreStore

K1, B, DELTA = 1.5, 0.75, 1.0


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
    words = [_words(row) for row in rows]
    retriever = bm25s.BM25(method="bm25+", k1=K1, b=B, delta=DELTA)
    retriever.index(words, show_progress=False)
    # A query's word that occurs twice counts twice, as in rank_bm25.
    scores = np.stack([retriever.get_scores(_words(query)) for query in queries], axis=1)
    manifest = {"method": "BM25", "formula": "BM25Plus", "k1": K1, "b": B, "delta": DELTA, "tokens": 'split(" ")'}
    example_ids = np.array([row["example_id"] for row in rows])
    query_ids = np.array([query["query_id"] for query in queries])
    return ScoreStore.write(output_dir, example_ids, query_ids, {"bm25": scores}, manifest)


def _words(row: Mapping[str, Any]) -> list[str]:
    return fill_in(row["inputs_pretokenized"], row["targets_pretokenized"]).split(" ")
