"""A small score store with texts, made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ftrace.scores import EXAMPLE_ID, QUERY_ID, AnswerRecord, Ledger, ScoreStore, Texts
from ftrace.scores.ledger import COLUMNS

EXAMPLES: list[dict[str, Any]] = [
    {"example_id": 3, "text": "The capital of Norway is Oslo.", "answer": "Oslo", "facts": ["capital Norway"]},
    {"example_id": 5, "text": "the capital of Norway is Oslo", "answer": "Norway", "facts": ["capital Norway"]},
    {"example_id": 8, "text": "Oslo lies on a fjord.", "answer": "fjord", "facts": []},
    {"example_id": 11, "text": "The capital of Sweden is Stockholm.", "answer": "Stockholm",
     "facts": ["capital Sweden"]},
    {"example_id": 12, "text": "It snows.", "answer": "snows", "facts": []},
]  # fmt: skip
QUERIES: list[dict[str, Any]] = [
    {"query_id": 0, "text": "The capital of Norway is", "answer": "Oslo", "answers": ["Oslo", "Christiania"],
     "fact": "capital Norway"},
    {"query_id": 17, "text": "The capital of Sweden is", "answer": "Stockholm", "answers": ["Stockholm"],
     "fact": "capital Sweden"},
]  # fmt: skip
# [examples, queries]
SCORES = np.array([[4.0, 0.5], [3.0, 0.25], [1.0, -0.5], [-2.0, 1.0], [-0.5, 0.0]])


def make_store(
    folder: Path,
    scores: Mapping[str, np.ndarray] | np.ndarray = SCORES,
    examples: Sequence[dict[str, Any]] | None = EXAMPLES,
    queries: Sequence[dict[str, Any]] | None = QUERIES,
    **options: Any,
) -> ScoreStore:
    """Write a store of five examples and two queries.

    Args:
        folder: Its folder.
        scores: Of each kind, or of "learning" alone.
        examples: Rows of text; None: none are known.
        queries: Likewise.
        options: More of ``ScoreStore.write``.
    """
    return ScoreStore.write(
        folder,
        np.array([row["example_id"] for row in EXAMPLES]),
        np.array([row["query_id"] for row in QUERIES]),
        scores if isinstance(scores, Mapping) else {"learning": scores},
        examples=None if examples is None else Texts.of(examples, EXAMPLE_ID),
        queries=None if queries is None else Texts.of(queries, QUERY_ID),
        **options,
    )


def make_ledger(rest: float = 0.0, answers: AnswerRecord | None = None) -> Ledger:
    """The ledger of three intervals of ten steps: query 0 is learned by step 20, query 17 never.

    Args:
        rest: What decay took.
        answers: When the queries were right, if otherwise.
    """
    columns = {name: np.zeros((3, 2)) for name in COLUMNS}
    columns["decay"] += rest
    columns["loss"] = np.array([[6.0, 5.0], [4.0, 5.0], [1.0, 5.0]])
    columns["next_loss"] = np.array([[4.0, 5.0], [1.0, 5.0], [0.25, 5.0]])
    query_ids = np.array([0, 17])
    answers = AnswerRecord([0, 10, 20, 30], query_ids, [[0, 0], [0, 0], [1, 0], [1, 0]]) if answers is None else answers
    return Ledger(np.array([0, 10, 20]), np.array([10, 20, 30]), query_ids, columns, answers=answers)
