"""The manifest of an index. It is read without torch, so that a command says at once that there is no index."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ftrace.files.manifests import Form, check_schema
from ftrace.files.manifests import read_manifest as read_manifest_file
from ftrace.index.settings import OLD_ENTRIES, OLD_OPTIONS, IndexSettings

INDEX = "index.json"


class _Settings(TypedDict):
    features: dict[str, Any]


class IndexFacts(TypedDict):
    """The manifest of an index, as far as readers rely on it."""

    settings: _Settings
    model: str
    blocks: dict[str, list[str]]
    left_out: list[str]
    written_by: NotRequired[str]
    run_id: NotRequired[str]


FORM = Form("ftrace-index", 2, IndexFacts, "a gradient index")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of an index.

    Raises:
        ValueError: If the folder holds no index, a damaged one, or one of a newer ftrace.
    """
    manifest = read_manifest_file(folder / INDEX, FORM)
    features = manifest["settings"]["features"]
    manifest["settings"]["features"] = {OLD_OPTIONS.get(name, name): value for name, value in features.items()}
    if (entries := features.get("entries")) in OLD_ENTRIES:
        manifest["settings"]["features"]["entries"] = OLD_ENTRIES[entries]
    check_schema(folder / INDEX, manifest["settings"], IndexSettings)
    return manifest
