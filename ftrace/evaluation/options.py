"""Options that name one of several things: the nearest names are told where none is meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def known_name(name: str, known: Sequence[str], option: str) -> str:
    """The name, if it is known.

    Raises:
        ValueError: If it is not; names the nearest.
    """
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or [one for one in known if name in one]
    raise ValueError(f"{option}: expected one of {list(near or known)}, found {name!r}")
