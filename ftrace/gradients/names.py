"""How classes are named, in tables, snapshots and manifests; and how names of parameters are chosen."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def full_name(thing: object) -> str:
    """The name of an object's class, with the module that it is from.

    Example:
        >>> import torch
        >>> full_name(torch.nn.Linear(1, 1))
        'torch.nn.modules.linear.Linear'
    """
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def match_globs(patterns: Sequence[str], names: Mapping[Key, Sequence[str]], argument: str = "parameters") -> set[Key]:
    """What globs choose, taken in order; one that begins with "!" takes away, and if it comes first, from all.

    Args:
        patterns: The globs.
        names: For each thing to choose from, the names that it goes by.
        argument: What the user calls the patterns.

    Raises:
        ValueError: If a glob matches nothing.

    Example:
        >>> sorted(match_globs(("*", "!*.bias"), {1: ["net.weight"], 2: ["net.bias"], 3: ["table"]}))
        [1, 3]
    """
    chosen: set[Key] = set()
    for index, pattern in enumerate(patterns):
        takes_away = pattern.startswith("!")
        glob = pattern.removeprefix("!")
        matched = {key for key, own in names.items() if any(fnmatchcase(name, glob) for name in own)}
        if not matched:
            known = [own[0] for own in names.values()]
            shown = get_close_matches(glob, known, n=3, cutoff=0.3) or known[:3]
            raise ValueError(
                f"{argument}: the glob {pattern!r} matches no parameter. There are: {', '.join(shown)}, ..."
            )
        if takes_away:
            chosen = (set(names) if index == 0 else chosen) - matched
        else:
            chosen |= matched
    return chosen
