"""Near-duplicates in a list of examples, which a reader wants to see once, with their number.

Two texts are near-duplicates if their words are the same in the same order, whatever the case, the punctuation and the
spaces; or if of all pairs of neighbouring words in either of them at least nine in ten are in both. So one changed word
makes no difference in a text of forty, and a great one in a sentence: "A is the father of B" is never folded with "B is
the father of A".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

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
    for place, text in enumerate(texts):
        pairs = _pairs(text)
        for group, of_first in zip(groups, first_pairs, strict=True):
            if text is not None and texts[group[0]] is not None and _alike(pairs, of_first, text, texts[group[0]]):
                group.append(place)
                break
        else:
            groups.append([place])
            first_pairs.append(pairs)
    return groups


def _pairs(text: str | None) -> frozenset[tuple[str, ...]]:
    keys = [word.key for word in words_in(text or "")]
    return frozenset(pairwise(keys)) if len(keys) > 1 else frozenset((key,) for key in keys)


def _alike(
    pairs: frozenset[tuple[str, ...]], others: frozenset[tuple[str, ...]], text: str | None, other: str | None
) -> bool:
    if not pairs and not others:  # signs alone
        return text == other
    return len(pairs & others) >= ALIKE * len(pairs | others)
