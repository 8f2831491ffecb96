"""Opening the score stores that a command names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ftrace.scores import ScoreStore


def open_stores(names: Sequence[str], run: Path | None = None, *, only_in_run: bool = False) -> dict[str, ScoreStore]:
    """Open score stores and make sure that they are whole.

    Args:
        names: Their folders.
        run: The folder of a run, in which they are looked for first.
        only_in_run: Whether they must be there, as those of several runs must.

    Returns:
        Stores by name: as much of the end of each folder's path as tells it from the others.

    Raises:
        ValueError: If a store is named twice, or damaged.
        FileNotFoundError: If there is no such folder.
    """
    if only_in_run:
        assert run is not None
        for name in names:
            if Path(name).is_absolute() or not (run / name).is_dir():
                raise ValueError(f"expected the name of a score store in each run, found no {name!r} in {str(run)!r}")
    folders = [run / name if run is not None and (run / name).is_dir() else Path(name) for name in names]
    paths = [folder.resolve().parts for folder in folders]
    if len(set(paths)) < len(paths):
        raise ValueError(f"expected each score store once, found {list(names)}")
    length = 1
    while len({path[-length:] for path in paths}) < len(paths):
        length += 1
    opened = {}
    for path, folder in zip(paths, folders, strict=True):
        opened["/".join(path[-length:])] = store = ScoreStore.open(folder)
        store.check()
    return opened
