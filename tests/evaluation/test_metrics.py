"""Metrics against torchmetrics on shifted scores, against brute force over ties, and against what they must refuse."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.retrieval import RetrievalMRR, RetrievalPrecision, RetrievalRecall

from ftrace.evaluation import MeanReciprocalRank, PrecisionAtK, RecallAtK
from ftrace.evaluation.ranking import expected_hits, expected_reciprocal_rank


def random_queries(count: int = 20, candidates: int = 30) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        relevant = torch.rand(candidates, generator=generator) < 0.2
        relevant[0] = True
        found.append((torch.randn(candidates, generator=generator), relevant))
    return found


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (MeanReciprocalRank(), RetrievalMRR()),
        *[(PrecisionAtK(k), RetrievalPrecision(top_k=k)) for k in (1, 3, 10, 25)],
        *[(RecallAtK(k), RetrievalRecall(top_k=k)) for k in (1, 10)],
    ],
    ids=lambda metric: f"{type(metric).__name__}{getattr(metric, 'k', '')}",
)
def test_metrics_equal_torchmetrics_on_scores_shifted_above_zero(ours: object, theirs: object) -> None:
    for index, (scores, relevant) in enumerate(random_queries()):
        ours.update(scores, relevant)
        theirs.update(scores - scores.min() + 1, relevant, torch.full_like(relevant, index, dtype=torch.long))
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-6)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6), st.integers(1, 7))
def test_ties_are_taken_in_expectation(candidates: list[tuple[int, bool]], k: int) -> None:
    """Against the mean over all orders of the tied."""
    scores = torch.tensor([float(score) for score, _ in candidates])
    relevant = torch.tensor([is_relevant for _, is_relevant in candidates])
    hits, ranks = [], []
    for order in itertools.permutations(range(len(candidates))):
        ranked = sorted(order, key=lambda i: -candidates[i][0])  # stable: each order of the tied as often as the others
        flags = [candidates[i][1] for i in ranked]
        hits.append(sum(flags[:k]))
        ranks.append(1 / (flags.index(True) + 1) if any(flags) else 0.0)
    assert float(expected_hits(scores, relevant, k)) == pytest.approx(sum(hits) / len(hits))
    assert float(expected_reciprocal_rank(scores, relevant)) == pytest.approx(sum(ranks) / len(ranks))


def test_recall_at_the_querys_own_number() -> None:
    metric = RecallAtK(None)
    metric.update(torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([True, False, True, False]))
    assert float(metric.compute()) == 0.5


def test_large_groups_of_ties_stay_finite() -> None:
    scores = torch.zeros(100_000)
    relevant = torch.zeros(100_000, dtype=torch.bool)
    relevant[:62] = True
    assert float(expected_hits(scores, relevant, 10)) == pytest.approx(10 * 62 / 100_000)
    assert 62 / 100_000 < float(expected_reciprocal_rank(scores, relevant)) < 0.01


@pytest.mark.parametrize(
    ("scores", "relevant", "k", "message"),
    [
        (torch.tensor([1.0, torch.nan]), torch.tensor([True, False]), 1, "expected finite numbers"),
        (torch.ones(2), torch.ones(3, dtype=torch.bool), 1, r"of one shape \[N\]"),
        (torch.ones(2), torch.ones(2), 1, "expected bool, found torch.float32"),
        (torch.ones(2), torch.ones(2, dtype=torch.bool), 0, "k: expected at least 1, found 0"),
    ],
)
def test_bad_input(scores: Tensor, relevant: Tensor, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expected_hits(scores, relevant, k)
