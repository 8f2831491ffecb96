"""Options whose value names one of several things."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def known_name(name: str, known: Sequence[str], option: str) -> str:
    """Return a name that an option was given, if it is known.

    Raises:
        ValueError: If it is not; the message lists the names most like it.
    """
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or [other for other in known if name in other]
    raise ValueError(f"{option}: expected one of {list(near or known)}, found {name!r}")
