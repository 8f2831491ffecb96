"""Files of others: unchanged, with their licences, and written down."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("ftrace/report/explorer/vendor", "tests/vendor")
LICENCES = {"MIT": "without restriction", "MPL-2.0": "Mozilla Public License, version 2.0"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_vendored_files_are_those_that_are_listed(folder: str) -> None:
    listed = {"vendored.json": None}
    for project in json.loads((ROOT / folder / "vendored.json").read_text()):
        assert {"name", "version", "licence", "licence_file", "files", "from", "why"} == set(project)
        assert LICENCES[project["licence"]] in (ROOT / folder / project["licence_file"]).read_text()
        assert "https://" in project["from"]
        listed.update(project["files"])
    files = {file.name: file for file in (ROOT / folder).iterdir()}
    assert set(files) == set(listed)
    for name, expected in listed.items():
        assert expected in (None, hashlib.sha256(files[name].read_bytes()).hexdigest()), name


def test_every_folder_of_vendored_files_is_looked_at() -> None:
    lists = [file for part in ("ftrace", "callbacks", "tests") for file in (ROOT / part).rglob("vendored.json")]
    assert {str(file.parent.relative_to(ROOT)) for file in lists} == set(FOLDERS)


def test_only_what_is_permissive_is_installed() -> None:
    for project in json.loads((ROOT / FOLDERS[0] / "vendored.json").read_text()):
        assert project["licence"] == "MIT"
