"""Names: of classes, in tables of what is known, in snapshots and in manifests; of layers; and of what was meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def full_name(thing: object) -> str:
    """The name of an object's class, with the module that it is from.

    Example:
        >>> import torch
        >>> full_name(torch.nn.Linear(1, 1))
        'torch.nn.modules.linear.Linear'
    """
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def layer_of(parameter: str) -> str:
    """Which layer a parameter belongs to: its block, or its module where it is in none.

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
    """A sentence for errors: what may have been meant, or else what there is.

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
