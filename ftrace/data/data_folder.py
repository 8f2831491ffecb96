"""Folders of data that are written whole or not at all: their manifests, and whether they are what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ftrace.data.messages import warn
from ftrace.files.digests import DamagedError, FileFacts, FolderCheck
from ftrace.files.manifests import Form, read_manifest

MANIFEST = "manifest.json"


class DataFacts(TypedDict):
    """The manifest of data, as far as readers rely on it."""

    num_train: int
    num_queries: int
    files: NotRequired[dict[str, FileFacts]]


def whole_manifest(folder: Path, form: Form) -> dict[str, Any] | None:
    """Return the manifest of a folder of data that is finished and is what was written; None if it must be made.

    A damaged folder is made anew, with a warning.

    Raises:
        ValueError: If the folder is that of something else, or of a newer ftrace.
    """
    if not (folder / MANIFEST).exists():  # it comes with the renaming of the whole folder
        return None
    try:
        manifest = read_manifest(folder / MANIFEST, form)
        files = FolderCheck(folder, manifest.get("files"))
        for name in files.files:
            files.check(name)
    except DamagedError as error:
        warn(f"{error}. The data are made anew")
        return None
    return manifest
