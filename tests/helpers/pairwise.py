"""Few combinations of several settings that still hold every pair of values."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairwise(*axes: Sequence[Any], seed: int = 0) -> list[tuple[Any, ...]]:
    """Choose combinations so that any two values of any two axes meet in at least one of them.

    Greedy: the next combination is the one that holds most of the pairs that are still missing. The seed decides ties,
    so the same arguments give the same combinations.

    Args:
        *axes: The values of each setting. The product of all of them is looked at, so it should be small.
    """
    every = list(product(*map(range, map(len, axes))))
    random.Random(seed).shuffle(every)
    missing = {pair for combination in every for pair in _pairs(combination)}
    chosen = []
    while missing:
        best = max(every, key=lambda combination: len(missing & _pairs(combination)))
        missing -= _pairs(best)
        chosen.append(best)
    return [tuple(axis[index] for axis, index in zip(axes, indices, strict=True)) for indices in sorted(chosen)]


def _pairs(combination: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
    """Pairs of (axis, value)."""
    return set(combinations(enumerate(combination), 2))
