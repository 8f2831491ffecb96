"""Opening the score stores that a command names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ftrace.scores import ScoreStore


def open_stores(folders: Sequence[str]) -> dict[str, ScoreStore]:
    """Open score stores and make sure that they are whole.

    Args:
        folders: Their folders.

    Returns:
        Stores by name: as much of the end of each folder's path as tells it from the others.

    Raises:
        ValueError: If a store is named twice, or damaged.
        FileNotFoundError: If there is no such folder.
    """
    paths = [Path(folder).resolve().parts for folder in folders]
    if len(set(paths)) < len(paths):
        raise ValueError(f"expected each score store once, found {list(folders)}")
    length = 1
    while len({path[-length:] for path in paths}) < len(paths):
        length += 1
    opened = {}
    for path, folder in zip(paths, folders, strict=True):
        opened["/".join(path[-length:])] = store = ScoreStore.open(folder)
        store.check()
    return opened
