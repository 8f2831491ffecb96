"""Near-duplicates in a list of examples, which a reader wants to see once, with their number.

Two texts are near-duplicates if their words are the same in the same order, whatever the case, the punctuation and the
spaces; or if of all pairs of neighbouring words in either of them at least nine in ten are in both. So one changed word
makes no difference in a text of forty, and a great one in a sentence: "A is the father of B" is never folded with "B is
the father of A".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from itertools import pairwise
from math import ceil

from ftrace.views.words import word_keys

Keys = frozenset[Hashable]

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
    keys_of_texts = [None if text is None else _pairs(text) or frozenset([text]) for text in texts]
    counts = Counter(key for keys in keys_of_texts if keys is not None for key in keys)
    order = {key: rank for rank, key in enumerate(sorted(counts, key=counts.__getitem__))}  # the rarest first
    groups: list[list[int]] = []
    groups_with: defaultdict[int, list[int]] = defaultdict(list)
    for place, keys in enumerate(keys_of_texts):
        if keys is None:
            groups.append([place])
            continue
        # Whoever is alike lacks so few keys that it has one of these, which are its own rarest ones, too.
        rarest = sorted(map(order.__getitem__, keys))[: len(keys) - ceil(ALIKE * len(keys)) + 1]
        candidates = {group for key in rarest for group in groups_with.get(key, ())}
        alike = next((group for group in sorted(candidates) if _are_alike(keys, keys_of_texts[groups[group][0]])), None)
        if alike is not None:
            groups[alike].append(place)
            continue
        for key in rarest:
            groups_with[key].append(len(groups))
        groups.append([place])
    return groups


def _pairs(text: str) -> Keys:
    keys = word_keys(text)
    return frozenset(pairwise(keys)) if len(keys) > 1 else frozenset((key,) for key in keys)


def _are_alike(keys: Keys, others: Keys | None) -> bool:
    return others is not None and len(keys & others) >= ALIKE * len(keys | others)
