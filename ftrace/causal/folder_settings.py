"""How the prompts of a folder were traced: ``settings.json`` in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from ftrace.files.manifests import Form, check_schema, read_json, read_manifest

SETTINGS = "settings.json"


class _Noise(TypedDict):
    kind: str
    scale: float
    samples: int


class _Traced(TypedDict):
    window: int


class FolderSettings(TypedDict):
    """How the prompts of a folder were traced, as far as readers rely on it."""

    settings: _Traced
    noise: _Noise
    prompts: str
    model: str


FORM = Form("ftrace-causal-traces", 2, FolderSettings, "a folder of causal traces")


def read_folder_settings(file: Path) -> dict[str, Any]:
    """Read how the prompts of a folder were traced.

    Raises:
        ValueError: If the file is damaged, or of a newer ftrace.
        OSError: If it can't be read.
    """
    settings = read_json(file, dict[str, Any], digest=False)
    if "format" in settings:
        return read_manifest(file, FORM)
    check_schema(file, settings, FolderSettings)  # of version 1
    return settings
