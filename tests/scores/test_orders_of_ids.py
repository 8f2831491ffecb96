"""Ids are found among others in any order, also where a difference of two of them exceeds 64 bits."""

from __future__ import annotations

import numpy as np
import pytest

from ftrace.scores.ids import ascending_order, is_ascending, places_of

EDGES = [-(2**63), -(2**63) + 1, -(2**53) - 1, -1, 0, 4, 2**53 + 1, 2**63 - 1]


@pytest.mark.parametrize("seed", range(20))
def test_places_are_found_in_any_order(seed: int) -> None:
    ids = np.random.default_rng(seed).permutation(np.array(EDGES))
    found = places_of(np.array([*EDGES, 7]), ids, ascending_order(ids))
    assert found.tolist() == [ids.tolist().index(known) for known in EDGES] + [-1]


def test_what_ascends() -> None:
    assert is_ascending(np.array(EDGES))
    assert is_ascending(np.array([], np.int64))
    for ids in ([4, -(2**63)], [3, 3], [2**63 - 1, -2]):
        assert not is_ascending(np.array(ids))
