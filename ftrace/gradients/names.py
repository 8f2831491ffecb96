"""How classes are named: in tables of what is known, in snapshots and in manifests."""

from __future__ import annotations


def full_name(thing: object) -> str:
    """The name of an object's class, with the module that it is from.

    Example:
        >>> import torch
        >>> full_name(torch.nn.Linear(1, 1))
        'torch.nn.modules.linear.Linear'
    """
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
