"""Doubts: why scores of a kind can't be trusted, in sentences that a store's manifest keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from ftrace.scores.ledger import Ledger
from ftrace.scores.row_ranges import ScoreRows, row_ranges
from ftrace.scores.sums import Sum


def find_doubts(
    scores: Mapping[Sum, ScoreRows], ledger: Ledger | None, candidate_offsets: np.ndarray | None = None
) -> dict[str, list[str]]:
    """Find what speaks against the scores of a run.

    Args:
        scores: For each kind, ``[N, Q]``; ``[pairs]`` with candidates.
        ledger: The run's ledger.
        candidate_offsets: ``[Q + 1]`` int64, if each query has candidates of its own: where each query begins.

    Returns:
        By kind, a sentence with its remedy for each reason; only kinds that are in doubt.
    """
    kinds = {key.kind for key in scores}
    doubts: dict[str, list[str]] = {}
    if "update" in kinds and ledger is not None:
        doubts["update"] = ledger.doubts()
    if "learning" in kinds:
        doubts["learning"] = _unlearned(scores[Sum("learning")], candidate_offsets)
    return {kind: sentences for kind, sentences in doubts.items() if sentences}


def _unlearned(learning: ScoreRows, candidate_offsets: np.ndarray | None) -> list[str]:
    """Name queries with losses so large that the probability of their answer was 0 at every step."""
    if not math.prod(learning.shape):
        return []
    if candidate_offsets is None:
        has_scores = np.zeros(learning.shape[1], bool)
        for _, rows in row_ranges(learning):
            has_scores |= rows.any(0)
    else:
        bounds = pairwise(candidate_offsets)
        has_scores = np.array(
            [begin == end or bool(learning[np.arange(begin, end)].any()) for begin, end in bounds], bool
        )
    zeros = int((~has_scores).sum())
    if not zeros:
        return []
    return [
        f"`learning` is in doubt: it is 0 for all examples of {zeros} of {len(has_scores)} queries. Their losses "
        "may be so large, as those of whole texts are, that their probability was 0 at every step. Rank by "
        "`whitened`, or let the queries' losses be of the answer alone"
    ]
