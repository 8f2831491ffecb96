"""Files whose size and digest are noted in ``files.json`` beside them, since no manifest of their folder does it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from ftrace.files.digests import DamagedError, FileFacts, FolderCheck, facts_of_files
from ftrace.files.manifests import read_json, write_json

NOTE = "files.json"


class _NotedFiles(TypedDict):
    files: dict[str, FileFacts]


def note_files(folder: Path, names: Iterable[str]) -> None:
    """Note size and digest of files in a folder, beside those that are noted already.

    Args:
        folder: The folder.
        names: The names of the files.
    """
    noted: dict[str, FileFacts] = {}
    with suppress(OSError, DamagedError):  # what is damaged is noted anew
        noted = read_json(folder / NOTE, _NotedFiles)["files"]
    there = {name: facts for name, facts in noted.items() if (folder / name).is_file()}
    write_json(folder / NOTE, {"files": {**there, **facts_of_files(folder, names)}})


def noted_files(folder: Path) -> FolderCheck:
    """Return the check of what is noted in a folder; of a folder without a note, files are taken as they are.

    Raises:
        DamagedError: If the note is damaged.
        OSError: If it can't be read.
    """
    file = folder / NOTE
    return FolderCheck(folder, read_json(file, _NotedFiles)["files"] if file.exists() else None)
