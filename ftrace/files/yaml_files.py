"""YAML files of settings, such as a run's config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ftrace.files.bounded import read_bounded
from ftrace.shown_text import one_line

_MOST_BYTES = 2**24


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file of names and values.

    Raises:
        ValueError: If it can't be read, or holds anything else.
    """
    try:
        content = msgspec.yaml.decode(read_bounded(file, _MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError, TypeError, RecursionError) as error:  # TypeError: a key that is a list
        reason = error.strerror if isinstance(error, OSError) else one_line(str(error))
        raise ValueError(f"{str(file)!r} can't be read as YAML ({reason}). Write its settings anew") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{str(file)!r}: expected names and values as YAML, found {type(content).__name__}")
    return content
