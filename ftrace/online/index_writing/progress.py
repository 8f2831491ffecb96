"""How far the run has come that writes an index, so that one that was killed early may be replaced."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal, TypedDict

from ftrace.files.digests import DamagedError
from ftrace.files.manifests import read_json, write_json
from ftrace.index import EXAMPLES

FILE = ".progress.json"  # hidden, so that a folder with nothing else counts as empty
_OURS = ("index.json", "example_names.json", EXAMPLES, "snapshots", "segment-*", FILE)
Progress = Literal["begun", "in a checkpoint", "finished"]


class _Content(TypedDict):
    run_id: str
    progress: Progress


def note_progress(folder: Path, run_id: str, progress: Progress) -> None:
    """Note how far a run has come."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, {"run_id": run_id, "progress": progress})


def is_unneeded(folder: Path, run_id: str) -> bool:
    """Tell whether a folder holds the index of another run that ended before any checkpoint, and nothing else."""
    try:
        noted = read_json(folder / FILE, _Content)
    except (FileNotFoundError, DamagedError):  # an index of an earlier version of ftrace, for one
        return False
    if any(not path.name.startswith(".") and path not in _parts(folder) for path in folder.iterdir()):
        return False
    return bool(noted["progress"] == "begun" and noted["run_id"] != run_id)


def remove_index(folder: Path) -> None:
    """Remove an index from its folder."""
    for path in _parts(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _parts(folder: Path) -> list[Path]:
    return [path for pattern in _OURS for path in folder.glob(pattern)]
