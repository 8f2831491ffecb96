"""What a manifest notes is found again, and every change of it or of a file beside it is found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NotRequired, TypedDict

import pytest

from ftrace.files.digests import DamagedError, FileFacts, FolderCheck, facts_of_files, finish_background_checks
from ftrace.files.manifests import Form, json_with_digest, read_json, read_manifest, write_json, write_manifest


class Facts(TypedDict):
    kinds: list[str]
    count: int
    files: NotRequired[dict[str, FileFacts]]


FORM = Form("things", 2, Facts, "a box of things")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inside").mkdir()
    (tmp_path / "a.npy").write_bytes(b"a" * 1000)
    (tmp_path / "inside" / "b.npy").write_bytes(b"b" * 5000)
    (tmp_path / ".hidden").write_bytes(b"c")
    write_manifest(tmp_path / "m.json", FORM, {"kinds": ["dot"], "count": 3, "files": facts_of_files(tmp_path)})
    return tmp_path


def check(folder: Path, small: int = 2**20) -> FolderCheck:
    return FolderCheck(folder, read_manifest(folder / "m.json", FORM)["files"], small)


def test_what_was_written_is_read(folder: Path) -> None:
    facts = read_manifest(folder / "m.json", FORM)
    assert (facts["format"], facts["version"], facts["kinds"], facts["count"]) == ("things", 2, ["dot"], 3)
    assert list(check(folder).check_all()) == ["a.npy", "inside/b.npy"]


def test_every_flipped_bit_of_a_manifest_is_found_or_changes_nothing(folder: Path) -> None:
    file = folder / "m.json"
    before, content = file.read_bytes(), read_manifest(file, FORM)
    for place in range(len(before)):
        for bit in (0, 3, 5):
            changed = bytearray(before)
            changed[place] ^= 1 << bit
            file.write_bytes(bytes(changed))
            try:
                assert read_manifest(file, FORM) == content
            except ValueError:
                continue


@pytest.mark.parametrize("small", [0, 2**20], ids=["in the background", "at once"])
@pytest.mark.parametrize("name", ["a.npy", "inside/b.npy"])
@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_damage_of_a_file_is_found(folder: Path, name: str, small: int) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(bytes(content))
    opened = check(folder, small)

    def use() -> None:
        opened.check(name)
        finish_background_checks()

    with pytest.raises(DamagedError, match=f"{name}' is damaged: its digest"):
        use()
    with pytest.raises(DamagedError, match=f"{name}' is damaged: its digest"):
        opened.check(name)  # again, as long as it is damaged


@pytest.mark.parametrize("small", [0, 2**20])
def test_files_that_are_cut_missing_or_foreign_are_found_at_once(folder: Path, small: int) -> None:
    (folder / "a.npy").write_bytes(b"a" * 999)
    (folder / "inside" / "b.npy").unlink()
    opened = check(folder, small)
    with pytest.raises(DamagedError, match="expected 1,000 bytes, found 999"):
        opened.check("a.npy")
    with pytest.raises(DamagedError, match="missing"):
        opened.check("inside/b.npy")
    with pytest.raises(DamagedError, match="doesn't list it"):
        opened.check("other.npy")


def test_files_of_older_versions_are_taken_as_they_are(folder: Path) -> None:
    opened = FolderCheck(folder, None)
    opened.check("a.npy")
    assert list(opened.check_all()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": None}, "entry 'kinds': expected array, found null"),
        ({"count": "3"}, "entry 'count': expected int, found str"),
        ({"count": True}, "entry 'count': expected int, found bool"),
        ({"version": 3}, "of version 3, and this ftrace reads 2. Update ftrace"),
        ({"version": "2"}, "of version '2'"),
        ({"format": "others"}, "is not a box of things"),
    ],
)
def test_manifests_of_another_shape_are_refused(folder: Path, changes: dict[str, object], message: str) -> None:
    file = folder / "m.json"
    file.write_text(json_with_digest({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        read_manifest(file, FORM)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a": ' * 100_000, "nested too deep"),
        ("[]", "expected a JSON object, found list"),
        ("", "no JSON"),
        ('{"count": NaN}', "found NaN"),
        ('{"count": 1e999, "kinds": [], "digest": ""}', "digest"),
        ('{"count": 1, "count": 2}', "'count' twice"),
        ('{"count": 3, "kinds": []}', "digest"),
    ],
)
def test_what_is_no_json_of_ours_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(DamagedError, match=message):
        read_json(file, Facts)


def test_a_number_that_json_lacks_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"count": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_pipe_is_no_manifest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(DamagedError, match="found a pipe"):
        read_json(tmp_path / "x.json", Facts)
