"""Sums of scores: which examples are kept, and what becomes of queries and sums that come later."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ftrace.online.scoring.accumulator import ScoreAccumulator
from ftrace.scores import Sum

DOT = Sum("dot")


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([5, 3, 5], "candidates: expected each example id once, found some several times"),
        ({7: [1, 2], 8: [3, 3]}, "expected each example id once, found some twice for query 8"),
        ({7: [1, 2]}, r"candidates: expected a list for each query, found none for \[8\]"),
    ],
)
def test_candidates_that_repeat_or_are_missing_are_refused(candidates: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreAccumulator(("dot",), [7, 8], candidates=candidates)


def test_a_query_that_comes_later_needs_candidates_too() -> None:
    sums = ScoreAccumulator(("dot",), [7], candidates={7: [1, 2]})
    with pytest.raises(ValueError, match=r"found none for \[8\]"):
        sums.add_queries([8])


@pytest.mark.parametrize("candidates", [None, [2, 1], {7: [2, 1], 8: [1, 9]}])
def test_queries_that_come_later_begin_at_zero_and_the_others_keep_their_sums(candidates: Any) -> None:
    sums = ScoreAccumulator(("dot",), [7], candidates=candidates)
    sums.add(torch.tensor([1, 2]), {DOT: torch.tensor([[1.0], [2.0]])})
    sums.add_queries([8])
    sums.add(torch.tensor([1]), {DOT: torch.tensor([[10.0, 20.0]])})
    ids, found = sums.sorted()
    if isinstance(candidates, dict):  # pairs, query by query
        assert ids.tolist() == [2, 1, 1, 9]
        assert found[DOT][:].tolist() == [2.0, 11.0, 20.0, 0.0]
    else:
        assert ids.tolist() == [1, 2]
        assert found[DOT][:].tolist() == [[11.0, 20.0], [2.0, 0.0]]


@pytest.mark.parametrize("candidates", [None, [1, 2, 3], {7: [1, 2], 8: [3, 1]}])
def test_what_several_processes_have_summed_adds_up(candidates: Any) -> None:
    whole, *shares = (ScoreAccumulator(("dot",), [7, 8], torch.float64, candidates) for _ in range(3))
    for number, one in enumerate(shares, 1):
        values = {DOT: number * torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()}
        ids = torch.tensor([number, 1])
        one.add(ids, values)
        whole.add(ids, values)
    shares[0].add_state(shares[1].state())
    for found, expected in zip(shares[0].sorted(), whole.sorted(), strict=True):
        if isinstance(expected, dict):
            assert found[DOT][:].tolist() == expected[DOT][:].tolist()  # type: ignore[index]
        else:
            assert found.tolist() == expected.tolist()  # type: ignore[union-attr]


def test_examples_that_are_no_candidates_are_not_kept() -> None:
    sums = ScoreAccumulator(("dot",), [7], candidates=[5, 3])
    sums.add(torch.tensor([4, 5]), {DOT: torch.ones(2, 1)})
    ids, found = sums.sorted()
    assert ids.tolist() == [3, 5]
    assert found[DOT][:].tolist() == [[0.0], [1.0]]
