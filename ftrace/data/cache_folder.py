"""Folders that are written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path


def is_whole(folder: Path, form: str, version: int = 1) -> bool:
    """Return whether a folder was finished, in the given form and version: its manifest comes with the renaming."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return False
    written = json.loads(manifest.read_text())
    return bool(written.get("format") == form and written.get("version") == version)
