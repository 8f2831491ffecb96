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
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"expected each score store once, found {list(names)}")
    opened = {}
    for name, folder in short_names(folders).items():
        opened[name] = store = ScoreStore.open(folder)
        store.check()
    return opened


def short_names(paths: Sequence[Path]) -> dict[str, Path]:
    """Different paths by as much of their ends as tells them apart."""
    parts = [path.resolve().parts for path in paths]
    length = 1
    while len({of_path[-length:] for of_path in parts}) < len(parts):
        length += 1
    return {"/".join(of_path[-length:]): path for of_path, path in zip(parts, paths, strict=True)}


def open_with_kind(run: Path, given: str) -> tuple[ScoreStore, str | None]:
    """A store given as FOLDER[:KIND], a name in the run's folder or a path, and the kind if there is one."""
    folder, _, kind = given.partition(":")
    return ScoreStore.open(run / folder if (run / folder).is_dir() else Path(folder)), kind or None
