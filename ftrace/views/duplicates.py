"""Near-duplicates in a list of examples, which a reader wants to see once, with their number.

Two texts are near-duplicates if their words are the same in the same order, whatever the case, the punctuation and the
spaces; or if of all pairs of neighbouring words in either of them at least nine in ten are in both. So one changed word
makes no difference in a text of forty, and a great one in a sentence: "A is the father of B" is never folded with "B is
the father of A".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import pairwise
from math import ceil

from ftrace.views.words import words_in

ALIKE = 0.9  # share of the pairs of words of two texts that both have


def fold_duplicates(texts: Sequence[str | None]) -> list[list[int]]:
    """Group the texts of a list that are near-duplicates of each other.

    Args:
        texts: The texts, strongest first; None is like no other.

    Returns:
        Places in the list, group by group, in the order of their first ones. Each member is like its group's first.

    Example:
        >>> fold_duplicates(["Oslo lies in Norway.", "It snows.", "Oslo lies in Norway"])
        [[0, 2], [1]]
    """
    groups: list[list[int]] = []
    first_pairs: list[frozenset[tuple[str, ...]]] = []
    groups_with: defaultdict[Hashable, list[int]] = defaultdict(list)
    for place, text in enumerate(texts):
        if text is None:
            groups.append([place])
            first_pairs.append(frozenset())
            continue
        pairs = _pairs(text)
        keys = pairs or [text]  # signs alone are alike if they are the same
        few = sorted(keys, key=lambda key: len(groups_with[key]))[: len(keys) - ceil(ALIKE * len(keys)) + 1]
        candidates = {group for key in few for group in groups_with[key]}  # whoever is alike has one of these few
        alike = next((group for group in sorted(candidates) if _are_alike(pairs, first_pairs[group])), None)
        if alike is not None:
            groups[alike].append(place)
            continue
        for key in keys:
            groups_with[key].append(len(groups))
        groups.append([place])
        first_pairs.append(pairs)
    return groups


def _pairs(text: str) -> frozenset[tuple[str, ...]]:
    keys = [word.key for word in words_in(text)]
    return frozenset(pairwise(keys)) if len(keys) > 1 else frozenset((key,) for key in keys)


def _are_alike(pairs: frozenset[tuple[str, ...]], others: frozenset[tuple[str, ...]]) -> bool:
    return len(pairs & others) >= ALIKE * len(pairs | others)
