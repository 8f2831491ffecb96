"""Names of classes, layers and parameters; globs over them; and the sentences that errors say about them."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def full_name(thing: object) -> str:
    """Get the name of an object's class, module included: as in tables of what is supported, snapshots and manifests.

    Example:
        >>> import torch
        >>> full_name(torch.nn.Linear(1, 1))
        'torch.nn.modules.linear.Linear'
    """
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def layer_of(parameter: str) -> str:
    """Name the layer that a parameter belongs to: its block, or its module where it is in no block.

    Example:
        >>> layer_of("model.h.0.attn.c_attn.weight"), layer_of("model.wte.weight")
        ('model.h.0', 'model.wte')
    """
    path = parameter.split(".")[:-1]
    for index, name in enumerate(path):
        if name.isdigit():
            return ".".join(path[: index + 1])
    return ".".join(path) or parameter


def nearest(name: str, known: Iterable[str]) -> str:
    """Write a sentence for errors: which of the known names may have been meant, or else what there is.

    Example:
        >>> nearest("tracing", ["bm25", "tracin", "embed"])
        "Did you mean 'tracin'?"
        >>> nearest("guess", ["bm25", "tracin", "embed"])
        "There are: 'bm25', 'tracin', 'embed'."
    """
    names = list(known)
    close = get_close_matches(name, names, n=3)
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    more = ", ..." if len(names) > 12 else "."
    return f"There are: {', '.join(map(repr, names[:12]))}{more}"


def leave_out(names: Iterable[str], patterns: Sequence[str] = ("*",)) -> str:
    """Write a sentence for errors: how parameters are left out.

    Args:
        names: The parameters' names.
        patterns: The globs that have chosen them.

    Example:
        >>> leave_out(["head.weight", "head.bias"])
        'Leave them out with parameters=("*", "!head.weight", "!head.bias")'
        >>> leave_out(["head.bias"], ["net.weight", "head.bias"])
        'Leave it out with parameters=("net.weight",)'
    """
    out = list(dict.fromkeys(names))
    named = [pattern for pattern in patterns if pattern not in out]
    if any(sign in pattern for pattern in patterns for sign in "*?[") or not named:
        named = [*patterns, *(f"!{name}" for name in out)]
    return f"Leave {'it' if len(out) == 1 else 'them'} out with {parameters_option(named)}"


def parameters_option(patterns: Sequence[str]) -> str:
    """Write the option that chooses parameters, as a user types it.

    Example:
        >>> parameters_option(["*.weight"])
        'parameters=("*.weight",)'
    """
    listed = ", ".join(json.dumps(pattern) for pattern in patterns)
    return f"parameters=({listed}{',' * (len(patterns) == 1)})"


def match_globs(patterns: Sequence[str], names: Mapping[Key, Sequence[str]], argument: str = "parameters") -> set[Key]:
    """Choose by globs, taken in order; one that begins with "!" takes away, and if it comes first, from all.

    Args:
        patterns: The globs.
        names: For each thing to choose from, all its names.
        argument: The patterns' name in errors.

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
        matched = {key for key, of_key in names.items() if any(fnmatchcase(name, glob) for name in of_key)}
        if not matched:
            raise ValueError(f"{argument}: the glob {pattern!r} matches no parameter. {_meant(glob, names.values())}")
        if takes_away:
            chosen = (set(names) if index == 0 else chosen) - matched
        else:
            chosen |= matched
    return chosen


def _meant(glob: str, names: Iterable[Sequence[str]]) -> str:
    """Write a sentence about modules and parameters with names like a glob that matches nothing."""
    paths = [of_key[0].split(".") for of_key in names]
    known = dict.fromkeys(".".join(path[: end + 1]) for path in paths for end in range(len(path)))
    return nearest(glob.strip("*."), known)
