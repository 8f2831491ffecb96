"""Doubts: why scores of a kind can't be trusted, in sentences that a store's manifest keeps."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import pairwise

import numpy as np

from ftrace.scores.ledger import Ledger
from ftrace.scores.row_ranges import ScoreRows, row_ranges
from ftrace.scores.sums import Sum

_NEVER = 170.0  # nats from which on sqrt(p (1 - p)) x cosine is 0 in float32
_ALWAYS = 1e-7  # and below which 1 - p is rounding
_NEVER_LIKELY = (
    "Their losses were above 170 nats at every step, as those of whole texts are, so the probability of their answers "
    "was always 0. Rank by `whitened`, or let the queries' losses be of the answer alone"
)
_ALWAYS_CERTAIN = (
    "Their losses were 0 at every step, so their answers were certain from the beginning, and nothing was left to "
    "learn. Trace the training that taught them, or ask for what isn't certain yet"
)
_NO_GRADIENT = (
    "Their losses were neither 0 nor above 170 nats at every step, so that is no question of probabilities: no "
    "example's gradient may have anything in common with theirs. Look at query_losses, and at the parameters that are "
    "covered"
)
_NOT_KNOWN = (
    "The probability of their answers was 0 at every step, as that of whole texts is, or 1. Keep the ledger "
    "(ledger=True) to know which. If it was 0, rank by `whitened`, or let the queries' losses be of the answer alone"
)


def find_doubts(
    scores: Mapping[Sum, ScoreRows],
    ledger: Ledger | None,
    candidate_offsets: np.ndarray | None = None,
    query_ids: np.ndarray | None = None,
    negative: Collection[int] = (),
) -> dict[str, list[str]]:
    """Find what speaks against the scores of a run.

    Args:
        scores: For each kind, ``[N, Q]``; ``[pairs]`` with candidates.
        ledger: The run's ledger.
        candidate_offsets: ``[Q + 1]`` int64, if each query has candidates of its own: where each query begins.
        query_ids: ``[Q]`` int64; needed only to tell which ones are ``negative``.
        negative: The queries whose losses were below 0, so that they are no -log of a probability.

    Returns:
        By kind, a sentence with its remedy for each reason; only kinds that are in doubt.
    """
    kinds = {key.kind for key in scores}
    doubts: dict[str, list[str]] = {}
    if "update" in kinds and ledger is not None:
        doubts["update"] = ledger.doubts()
    if "learning" in kinds:
        has_scores = _has_scores(scores[Sum("learning")], candidate_offsets)
        is_negative = np.zeros(len(has_scores), bool)
        if query_ids is not None:
            is_negative = np.isin(query_ids, list(negative))
        doubts["learning"] = _unweighted(is_negative) + _unlearned(~has_scores & ~is_negative, ledger)
    return {kind: sentences for kind, sentences in doubts.items() if sentences}


def _has_scores(scores: ScoreRows, candidate_offsets: np.ndarray | None) -> np.ndarray:
    """Tell which queries have a score that isn't 0, or no examples at all, ``[Q]``."""
    if candidate_offsets is not None:
        bounds = pairwise(candidate_offsets)
        return np.array([begin == end or bool(scores[np.arange(begin, end)].any()) for begin, end in bounds], bool)
    has_scores = np.full(scores.shape[1], not math.prod(scores.shape))
    for _, rows in row_ranges(scores):
        has_scores |= rows.any(0)
    return has_scores


def _unweighted(is_negative: np.ndarray) -> list[str]:
    if not is_negative.any():
        return []
    return [
        f"`learning` is in doubt: losses were below 0 for {is_negative.sum()} of {len(is_negative)} queries, so they "
        "are no -log of a probability, by which steps are weighted. Rank by `whitened`, or make the loss -log of a "
        "probability: of a margin or an activation m, -logsigmoid(m)"
    ]


def _unlearned(is_zero: np.ndarray, ledger: Ledger | None) -> list[str]:
    """Say why queries have no scores: at every step, the probability of their answer was nearly 0, or 1, or neither."""
    highest = lowest = np.full(len(is_zero), np.nan)
    if ledger is not None and len(ledger.steps):
        losses = ledger.columns["loss"]
        highest, lowest = np.fmax.reduce(losses), np.fmin.reduce(losses)
    is_unknown = np.isnan(highest)
    never, always = lowest > _NEVER, highest < _ALWAYS
    reasons = {
        _NEVER_LIKELY: never,
        _ALWAYS_CERTAIN: always,
        _NO_GRADIENT: ~(never | always | is_unknown),
        _NOT_KNOWN: is_unknown,
    }
    return [
        f"`learning` is in doubt: it is 0 for all examples of {count} of {len(is_zero)} queries. {reason}"
        for reason, holds in reasons.items()
        if (count := int((is_zero & holds).sum()))
    ]
