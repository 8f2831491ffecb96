"""Which score stores a command names, and which run they belong to: the same options in every command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from ftrace.commands.options import add_trust
from ftrace.run_folder import newest_run
from ftrace.runs import Run
from ftrace.scores import ScoreStore

_RUN = (
    "The log folder of the run that they belong to, or the folder that its versions are in: the newest is taken; "
    "default: the folder that the first store is in."
)


def add_stores(command: ArgumentParser, what: str = "", *, required: bool = True) -> None:
    """Add the arguments that name score stores and their run.

    Args:
        command: The command's parser.
        what: More about the stores, for the help.
        required: Whether at least one must be named.
    """
    text = f"Folders of score stores; with --run, also their names in it.{f' {what}' if what else ''}"
    if required:
        command.add_argument("stores", nargs="+", type=str, help=text)
    else:
        command.add_argument("stores", nargs="*", type=str, default=[], help=text)
    command.add_argument("--run", type=str | None, default=None, help=_RUN)
    add_trust(command)


def open_stores_of_run(
    stores: Sequence[str], run: str | None, trust: bool = False
) -> tuple[Run, dict[str, ScoreStore]]:
    """Open score stores and the run that they belong to.

    Args:
        stores: Their folders, or their names in the run's folder.
        run: The run's folder, or the one that its versions are in; None: the folder that the first store is in.
        trust: As :class:`ftrace.runs.Run` takes it.

    Raises:
        ValueError: If there is neither a store nor a run, it is not the folder of a run, or as :func:`open_stores`.
        FileNotFoundError: If there is no such store.
    """
    if run is not None:
        named = Run(newest_run(run), trust)
        return named, open_stores(stores, named.folder)
    if not stores:
        raise ValueError("expected score stores or --run, found neither")
    opened = open_stores(stores)
    return Run(Path(stores[0]).resolve().parent, trust), opened


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
    """Name different paths by as much of their ends as tells them apart."""
    parts = [path.resolve().parts for path in paths]
    length = 1
    while len({of_path[-length:] for of_path in parts}) < len(parts):
        length += 1
    return {"/".join(of_path[-length:]): path for of_path, path in zip(parts, paths, strict=True)}


def open_with_kind(run: Path | None, given: str) -> tuple[ScoreStore, str | None]:
    """Open a store given as FOLDER[:KIND], a name in the run's folder or a path; and return the kind, if any."""
    folder, colon, kind = given.rpartition(":")
    if not colon or "/" in kind or _folder(run, given).is_dir():  # a colon in a path separates nothing
        folder, kind = given, ""
    return ScoreStore.open(_folder(run, folder)), kind or None


def _folder(run: Path | None, name: str) -> Path:
    return run / name if run is not None and (run / name).is_dir() else Path(name)
