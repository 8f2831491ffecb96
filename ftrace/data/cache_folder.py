"""Folders that are written whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write to, which takes the place of ``folder`` once everything is written.

    If anything fails, ``folder`` stays what it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if folder.exists():
            aside = temporary.with_name(f"{temporary.name}.old")
            folder.rename(aside)
            temporary.rename(folder)
            shutil.rmtree(aside)
        else:
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_whole(folder: Path, form: str, version: int = 1) -> bool:
    """Whether a folder was finished, in the given form and version: its manifest comes with the renaming."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return False
    found = json.loads(manifest.read_text())
    return bool(found.get("format") == form and found.get("version") == version)
