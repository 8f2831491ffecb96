"""Folders that are written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path


def is_whole(folder: Path, form: str, version: int = 1) -> bool:
    """Whether a folder was finished, in the given form and version: its manifest comes with the renaming."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return False
    found = json.loads(manifest.read_text())
    return bool(found.get("format") == form and found.get("version") == version)
