"""Whatever happens to a file of ours: its reader says so in one line, or reads the same, and never other numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import pytest
from hypothesis import HealthCheck, given, settings

from ftrace.files.digests import FileFacts, FolderCheck, facts_of_files
from ftrace.files.manifests import Form, read_manifest, write_manifest
from helpers.fuzzed_files import CHANGES, Change, StoredFormat, apply, content_of
from helpers.stored_runs import STORED_RUNS
from helpers.stored_scores import STORED_SCORES

EXAMPLES = 150  # changes of each format


class _Facts(TypedDict):
    count: int
    files: dict[str, FileFacts]


_FORM = Form("things", 2, _Facts, "a box of things")


def _make_box(folder: Path, seed: int) -> None:
    for name in ("a", "b"):
        (folder / name).write_text(f"{seed} of {name}" * (seed + 5))
    write_manifest(folder / "manifest.json", _FORM, {"count": seed, "files": facts_of_files(folder, ["a", "b"])})


def _read_box(folder: Path) -> Any:
    manifest = read_manifest(folder / "manifest.json", _FORM)
    check = FolderCheck(folder, manifest["files"], small=50)
    for name in ("a", "b"):
        check.check(name)
    return manifest, [(folder / name).read_bytes() for name in ("a", "b")]


# By name. A new format of files gets a line here, or in a helper of its part.
FORMATS: dict[str, StoredFormat] = {
    "manifest and files": StoredFormat(_make_box, _read_box),
    **STORED_SCORES,
    **STORED_RUNS,
}


@pytest.mark.filterwarnings("ignore:.*is damaged")
@pytest.mark.parametrize("name", FORMATS)
def test_changed_files_are_refused_or_read_the_same(name: str, tmp_path: Path) -> None:
    stored = FORMATS[name]
    whole, other, folder = tmp_path / "whole", tmp_path / "other", tmp_path / "changed"
    for seed, made in enumerate((whole, other)):
        made.mkdir()
        stored.make(made, seed)
    expected = content_of(stored, whole)
    assert content_of(stored, other) != expected
    outcomes: dict[str, int] = {"refused": 0, "same": 0}

    def hold(change: Change) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        changed = apply(change, folder, other)
        content, message = None, None
        try:
            content = content_of(stored, folder)
        except ValueError as error:
            message = str(error)
        outcomes["same" if message is None else "refused"] += 1
        if message is not None:
            assert len(message.splitlines()) == 1, f"{changed}: expected a message of one line, found {message!r}"
        elif stored.has_digests:
            assert _without(content, folder) == _without(expected, whole), f"{changed}: other content, and no error"

    _many(hold)
    assert outcomes["refused"] > EXAMPLES / 10  # many changes are damage


def _many(hold: Callable[[Change], None]) -> None:
    quick = settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    quick(given(CHANGES)(hold))()


def _without(content: Any, folder: Path) -> str:
    """Write content without the place that it was read from, which messages and views may name."""
    return repr(content).replace(str(folder), "")
