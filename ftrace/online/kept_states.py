"""Which files of a run's state are still needed, since a checkpoint names them.

A checkpoint is saved by the loop, after its state, to a place that isn't known here. So checkpoints.json, beside the
states, counts how often each file was given to a checkpoint, and in which checkpoints, among those that the loop may
delete, it was found. A file is deleted once as many were found as it was given to, and all of them are gone. One that
was given to a checkpoint elsewhere, such as a copy by hand, is kept for good. In doubt, files are kept.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

from ftrace.files.digests import DamagedError
from ftrace.files.manifests import read_json, write_json

FILE = "checkpoints.json"


class _Checkpoint(TypedDict):
    print: list[int]
    files: list[str]


class _Content(TypedDict):
    given: dict[str, int]  # to how many checkpoints, by the name of a file
    found: dict[str, int]  # in how many, also those that are gone
    checkpoints: dict[str, _Checkpoint]  # those that there are, by path


class KeptStates:
    """The files of states in a folder, for the process that deletes those of all processes.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def delete_unneeded(self, checkpoints: Iterable[Path], given: Iterable[str] = ()) -> None:
        """Delete the files that no checkpoint needs any more.

        Args:
            checkpoints: The checkpoints that the loop may delete, as far as it has them now.
            given: Files that are about to be given to another checkpoint.
        """
        content = self._read()
        there = content["checkpoints"]
        for path in {os.path.realpath(path) for path in checkpoints}:
            self._look_into(path, content)
        for path in [path for path in there if not os.path.exists(path)]:
            del there[path]
        named = {name for checkpoint in there.values() for name in checkpoint["files"]}
        for name in {Path(file).name for file in given}:
            content["given"][name] = content["given"].get(name, 0) + 1
        for name, count in list(content["given"].items()):
            if name not in named and content["found"].get(name, 0) >= count:
                (self._folder / Path(name).name).unlink(missing_ok=True)
                del content["given"][name], content["found"][name]
        if self._folder.is_dir():
            write_json(self._folder / FILE, {**content})

    def _look_into(self, path: str, content: _Content) -> None:
        """Note which files a checkpoint names, if it is new or was written again."""
        try:
            status = os.stat(path)
            identity = [status.st_mtime_ns, status.st_size, status.st_ino]
            if path in content["checkpoints"] and content["checkpoints"][path]["print"] == identity:
                return
            names = _names_in(path, content["given"])
        except (OSError, zipfile.BadZipFile):  # a folder, for one: what it names is kept
            return
        content["checkpoints"][path] = {"print": identity, "files": names}
        for name in names:
            content["found"][name] = content["found"].get(name, 0) + 1

    def _read(self) -> _Content:
        try:
            content: Any = read_json(self._folder / FILE, _Content)
        except (FileNotFoundError, DamagedError):  # what isn't listed is kept
            return {"given": {}, "found": {}, "checkpoints": {}}
        return {"given": content["given"], "found": content["found"], "checkpoints": content["checkpoints"]}


def _names_in(checkpoint: str, names: Iterable[str]) -> list[str]:
    """List the files that a checkpoint of ``torch.save``, or a JSON file, names, without running any code in it."""
    if checkpoint.endswith(".json"):
        content = Path(checkpoint).read_bytes()
        return [name for name in names if name.encode() in content]
    with zipfile.ZipFile(checkpoint) as archive:
        pickles = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
    return [name for name in names if any(name.encode() in pickled for pickled in pickles)]
