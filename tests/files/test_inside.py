"""No name leads out of its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftrace.files.digests import FolderCheck, facts_of_files
from ftrace.files.inside import inside


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_text("in")
    (tmp_path / "secret").write_text("out")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    (folder / "within").symlink_to(folder / "deep")
    return folder


@pytest.mark.parametrize(
    "name", ["../secret", "deep/../../secret", "/etc/passwd", "", ".", "..", "link", "up/secret", "a\0b", 3, None]
)
def test_what_leads_out_is_refused(folder: Path, name: Any) -> None:
    with pytest.raises(ValueError, match=r"leads out of it\. Copy"):
        inside(folder, name)


@pytest.mark.parametrize("name", ["deep/file", "deep/../deep/file", "within/file", "not/there", "..hidden", "a b"])
def test_what_lies_in_it_is_returned_as_it_is_named(folder: Path, name: str) -> None:
    assert inside(folder, name) == folder / name


def test_a_folder_that_is_itself_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(folder)
    assert inside(tmp_path / "other", "deep/file").read_text() == "in"


@pytest.mark.parametrize("name", ["../secret", "link"])
def test_no_manifest_names_other_files(folder: Path, name: str) -> None:
    facts = facts_of_files(folder, [name])
    with pytest.raises(ValueError, match="leads out of it"):
        FolderCheck(folder, facts).check(name)
    with pytest.raises(ValueError, match="leads out of it"):
        list(FolderCheck(folder, facts).check_all())
