"""Helpers of the tests that have something to get wrong themselves."""

from __future__ import annotations

from itertools import combinations

import pytest

from helpers.pairwise import pairwise

AXES = [
    [["a", "b", "c", "d", "e", "f"], ["x", "y"], [(0, 1), (0, 3), (1, 1), (1, 3)], [1, 2]],
    [[0, 1], [0, 1], [0, 1], [0, 1], [0, 1], [0, 1], [0, 1]],
    [[0, 1, 2], ["only"], [0, 1, 2], [0, 1, 2]],
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("axes", AXES)
def test_every_pair_of_values_meets(axes: list[list[object]], seed: int) -> None:
    chosen = pairwise(*axes, seed=seed)
    for first, second in combinations(range(len(axes)), 2):
        met = {(combination[first], combination[second]) for combination in chosen}
        assert met == {(one, other) for one in axes[first] for other in axes[second]}


@pytest.mark.parametrize(("axes", "most"), [(AXES[0], 24), (AXES[1], 9), (AXES[2], 10)])
def test_combinations_are_few_and_the_same_each_time(axes: list[list[object]], most: int) -> None:
    chosen = pairwise(*axes)
    assert len(chosen) == len(set(chosen)) <= most
    assert chosen == pairwise(*axes)
