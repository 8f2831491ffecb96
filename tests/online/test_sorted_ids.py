"""Sets of ids in sorted arrays, against sets of Python."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ftrace.online.sorted_ids import SortedIds


@given(st.lists(st.lists(st.integers(-5, 30) | st.integers(-(2**63), 2**63 - 1), max_size=6), max_size=20))
def test_what_was_seen_is_told_as_a_set_tells_it(batches: list[list[int]]) -> None:
    seen, expected = SortedIds(), set()
    for batch in batches:
        ids = np.array(sorted(set(batch)), dtype=np.int64)
        assert ids[seen.contain(ids)].tolist() == [one for one in ids.tolist() if one in expected]
        seen.add(ids)
        expected.update(ids.tolist())
    lengths = [len(array) for array in seen._arrays]
    assert all(longer >= 2 * shorter for longer, shorter in pairwise(lengths))
