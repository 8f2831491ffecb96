"""Options that have got a new name: the old one works for one more release, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any


def use_new_names(
    who: str, options: Mapping[str, Any], renamed: Mapping[str, str], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Move what was given under old names to the new ones.

    Args:
        who: What has these options, for messages.
        options: Values by name. Those of old names are None where they were not given.
        renamed: From old names to new ones.
        defaults: Of the new names, to find out whether both were given.

    Returns:
        Values by name, without old names.

    Raises:
        ValueError: If an option is given under both names.

    Example:
        >>> use_new_names("example", {"size": 3, "side": None}, {"side": "size"}, {"size": 3})
        {'size': 3}
    """
    values = {name: value for name, value in options.items() if name not in renamed}
    for old, new in renamed.items():
        value = options.get(old)
        if value is None:
            continue
        if values[new] != defaults[new]:
            raise ValueError(f"{old}: expected one of {new} and {old}, its old name, found both")
        warn_of_old_name(who, old, new)
        values[new] = value
    return values


def warn_of_old_name(who: str, old: str, new: str) -> None:
    """Warn that an option's name, or a value of one, will no longer be known in the next release."""
    warnings.warn(f"{who}: {old} is now called {new}. The next release won't know {old}", FutureWarning, stacklevel=4)
