"""Rankings against torchmetrics on shifted scores, against brute force over ties, and against what they must refuse."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import retrieval_precision, retrieval_recall, retrieval_reciprocal_rank

from ftrace.evaluation.retrieval import Ranking


def random_queries(count: int = 20, candidates: int = 30) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    queries = []
    for _ in range(count):
        relevant = generator.random(candidates) < 0.2
        relevant[0] = True
        queries.append((generator.normal(size=candidates), relevant))
    return queries


@pytest.mark.parametrize("k", [1, 3, 10, 25])
def test_metrics_equal_torchmetrics_on_scores_shifted_above_zero(k: int) -> None:
    """Shifted, because torchmetrics takes a score of 0 or below for not retrieved."""
    for scores, relevant in random_queries():
        ranking = Ranking.of(scores, relevant)
        theirs = torch.from_numpy(scores - scores.min() + 1), torch.from_numpy(relevant)
        assert ranking.reciprocal_rank() == pytest.approx(float(retrieval_reciprocal_rank(*theirs)))
        assert ranking.hits_at(k) / k == pytest.approx(float(retrieval_precision(*theirs, top_k=k)))
        assert ranking.hits_at(k) / relevant.sum() == pytest.approx(float(retrieval_recall(*theirs, top_k=k)))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6), st.integers(1, 7))
def test_ties_are_taken_in_expectation(candidates: list[tuple[int, bool]], k: int) -> None:
    """Against the mean over all orders of the tied, from the best on and from the last on."""
    scores = np.array([float(score) for score, _ in candidates])
    relevant = np.array([is_relevant for _, is_relevant in candidates])
    ranking = Ranking.of(scores, relevant)
    for sign, found in ((1, ranking), (-1, ranking.reversed())):
        hits, ranks, places = [], [], []
        for order in itertools.permutations(range(len(candidates))):
            ranked = sorted(order, key=lambda i: -sign * scores[i])  # stable: each order of the tied equally often
            flags = [candidates[i][1] for i in ranked]
            hits.append(sum(flags[:k]))
            ranks.append(1 / (flags.index(True) + 1) if any(flags) else 0.0)
            places.append(np.mean(np.flatnonzero(flags)) / max(1, len(flags) - 1) if any(flags) else np.nan)
        assert found.hits_at(k) == pytest.approx(np.mean(hits))
        assert found.reciprocal_rank() == pytest.approx(np.mean(ranks))
        assert found.mean_rank() == pytest.approx(np.mean(places), nan_ok=True)
    assert ranking.num_relevant == relevant.sum()


def test_relevant_candidates_may_be_named_by_their_places() -> None:
    for scores, relevant in random_queries():
        by_flag = Ranking.of(scores, relevant)
        by_place = Ranking.of(scores, np.flatnonzero(relevant))
        assert by_flag.hits_at(7) == by_place.hits_at(7)
        assert by_flag.reciprocal_rank() == by_place.reciprocal_rank()


def test_the_perfect_ranking_is_the_best() -> None:
    perfect = Ranking.perfect(10, 3)
    same = Ranking.of(np.array([1.0] * 3 + [0.0] * 7), np.arange(10) < 3)
    for k in (1, 3, 5, 10, 11):
        assert perfect.hits_at(k) == same.hits_at(k) == min(k, 3)
        assert perfect.reversed().hits_at(k) == same.reversed().hits_at(k) == np.clip(k - 7, 0, 3)
    assert perfect.reciprocal_rank() == 1


def test_large_groups_of_ties_stay_finite() -> None:
    ranking = Ranking.of(np.zeros(100_000, np.float32), np.arange(62))
    assert ranking.hits_at(10) == pytest.approx(10 * 62 / 100_000)
    assert 62 / 100_000 < ranking.reciprocal_rank() < 0.01


@pytest.mark.parametrize(
    ("scores", "relevant", "k", "message"),
    [
        (np.array([1.0, np.nan]), np.array([True, False]), 1, "expected finite numbers"),
        (np.ones(2), np.ones(3, bool), 1, r"of one shape \[C\]"),
        (np.ones((2, 1)), np.ones(2, bool), 1, r"of one shape \[C\]"),
        (np.ones(2), np.ones(2), 1, "expected bool or indices, found float64"),
        (np.ones(2), np.ones(2, bool), 0, "k: expected at least 1, found 0"),
    ],
)
def test_bad_input(scores: np.ndarray, relevant: np.ndarray, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ranking.of(scores, relevant).hits_at(k)
