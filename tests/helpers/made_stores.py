"""Small score stores, written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ftrace.scores import AnswerRecord, Ledger, ScoreStore, Texts, stable_id
from ftrace.scores.ledger import COLUMNS

EXAMPLES, QUERIES = ("wiki/1", "wiki/2", "wiki/3", "wiki/4"), ("who", "where")
SCORES = np.array([[1.0, -3.0], [2.0, 0.0], [-1.0, 4.0], [-8.0, np.nan]], dtype=np.float32)
HOSTILE = "<script>alert(1)</script> [red]\x1b[31m\u202eevil\n&"


def ids_of(names: Sequence[str]) -> np.ndarray:
    return np.array([stable_id(name) for name in names])


def named_store(folder: Path, *, texts: bool = True, names: bool = True, **kinds: np.ndarray) -> ScoreStore:
    """A store of ids that are made of names; the last example has no text, the first one's is hostile.

    Args:
        folder: The store's.
        texts: Whether it has texts.
        names: Whether it keeps the names; the texts tell them in any case.
        **kinds: Scores, ``[4, 2]``; default: ``dot`` and ``learning``, which ranks the other way round.
    """
    of_examples = [
        {"example_id": name, "text": text, "answer": name.upper(), "facts": facts}
        for name, text, facts in zip(
            EXAMPLES, (HOSTILE, "Oslo, Norway", "a lie"), (["f"], ["f", "g"], []), strict=False
        )
    ]
    of_queries: list[dict[str, Any]] = [
        {"query_id": "who", "text": f"who is {HOSTILE}?", "answer": "me", "fact": "f"},
        {"query_id": "where", "text": "where is Oslo?", "answer": "Norway", "proponent_ids": ["wiki/3", "wiki/4"]},
    ]
    return ScoreStore.write(
        folder,
        ids_of(EXAMPLES),
        ids_of(QUERIES),
        kinds or {"dot": SCORES, "learning": -SCORES},
        {"method": "by hand"},
        names={stable_id(name): name for name in (*EXAMPLES, *QUERIES)} if names else None,
        examples=Texts.of(of_examples, "example_id") if texts else None,
        queries=Texts.of(of_queries, "query_id") if texts else None,
    )


def made_ledger(query_ids: Sequence[int]) -> Ledger:
    """A ledger of two intervals; the last query learned nothing."""
    moved = np.ones((2, len(query_ids)))
    moved[:, -1] = 0
    columns = dict.fromkeys(COLUMNS, np.zeros(moved.shape))
    columns |= {"loss": 4 - moved * [[0], [1]], "next_loss": 4 - moved * [[1], [2]]}
    columns |= {"predicted": 0.9 * moved, "examples": 0.8 * moved, "momentum": 0.1 * moved}
    answers = AnswerRecord([0, 5, 8], query_ids, np.cumsum([0 * moved[0], *moved], 0) > 1)
    return Ledger(np.array([0, 5]), np.array([5, 8]), np.asarray(query_ids), columns, answers=answers)
