"""Reading of files that may have been received: only real files, and only as large as such files are."""

from __future__ import annotations

import stat
from pathlib import Path


def read_bounded(file: Path, most: int) -> bytes:
    """Read a file whole.

    Args:
        file: The file. A pipe or a device might never end.
        most: The most bytes that it may have.

    Raises:
        ValueError: If it is no file, or larger; the message doesn't name it.
        OSError: If it can't be read.
    """
    facts = file.stat()
    if not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):  # a folder is the system's own error
        raise ValueError("expected a file, found a pipe or a device")
    if facts.st_size > most:
        raise ValueError(f"expected at most {most:,} bytes, found {facts.st_size:,}")
    return file.read_bytes()
