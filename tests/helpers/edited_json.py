"""JSON files of ours, changed by hand: with a digest that fits, so that what they say is what readers judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ftrace.files.digests import facts_of_files
from ftrace.files.manifests import json_with_digest


def edit_json(file: Path, changes: dict[str, Any], *, without: tuple[str, ...] = ()) -> None:
    """Change entries of a JSON file.

    Args:
        file: The file.
        changes: New values by entry.
        without: Entries to take out.
    """
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json_with_digest({name: value for name, value in content.items() if name not in without}))


def note_files(manifest: Path) -> None:
    """Note the files of a folder in its manifest as they are now, as if they had been written so."""
    files = json.loads(manifest.read_text())["files"]
    edit_json(manifest, {"files": facts_of_files(manifest.parent, files)})


def as_version_1(manifest: Path) -> None:
    """Make a manifest one of version 1, which knows no digests."""
    content = json.loads(manifest.read_text())
    kept = {name: value for name, value in content.items() if name not in ("files", "digest")}
    manifest.write_text(json.dumps({**kept, "version": 1}))
