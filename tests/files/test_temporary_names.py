"""Leftovers: those of dead processes of this machine go, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ftrace.files import temporary_names
from ftrace.files.temporary_names import temporary_name
from ftrace.files.whole_files import whole_file, whole_folder


@pytest.fixture
def dead() -> int:
    """Return the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def named(target: Path, process: int, machine: str | None = None) -> Path:
    """Return the temporary name that another process, or another machine, would give."""
    name = temporary_name(target).name.replace(f"-{os.getpid()}-", f"-{process}-")
    return target.with_name(name if machine is None else name.replace(temporary_names._machine(), machine))


def write(target: Path) -> None:
    if target.suffix:
        with whole_file(target) as file:
            file.write_text("new")
    else:
        with whole_folder(target) as folder:
            (folder / "a").write_text("new")


@pytest.mark.parametrize("name", ["file.txt", "folder", "a.+(b)"])
def test_the_next_writer_of_a_name_removes_what_dead_processes_have_left(tmp_path: Path, dead: int, name: str) -> None:
    target = tmp_path / name
    named(target, dead).write_text("half")
    folder = named(target, dead)
    folder.mkdir()
    (folder / "a").write_text("half")
    write(target)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_nothing_else_is_removed(tmp_path: Path, dead: int) -> None:
    target = tmp_path / "folder"
    kept = [
        named(target, os.getpid()),
        named(target, 1),  # of another user, and alive
        named(target, dead, "0123abcd"),
        named(tmp_path / "folder2", dead),
        tmp_path / f".folder.{dead}-0123abcd.tmp",
        tmp_path / ".folder.notes.tmp",
    ]
    for path in kept:
        path.write_text("")
    write(target)
    assert set(tmp_path.iterdir()) == {*kept, target}


@pytest.mark.parametrize("is_there", [True, False])
def test_a_process_that_died_between_two_renames_has_lost_nothing(tmp_path: Path, dead: int, is_there: bool) -> None:
    target, half = tmp_path / "folder", named(tmp_path / "folder", dead)
    half.mkdir()
    aside = half.with_name(f"{half.name}.old")
    aside.mkdir()
    (aside / "a").write_text("earlier")
    if is_there:
        write(target)
        assert (target / "a").read_text() == "new"
    else:
        with pytest.raises(KeyboardInterrupt), whole_folder(target):
            raise KeyboardInterrupt
        assert (target / "a").read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [target]


def test_a_machine_that_can_not_be_told_from_others_removes_nothing(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: str) -> str:
        raise OSError(path)

    monkeypatch.setattr(os, "readlink", fails)
    temporary_names._machine.cache_clear()
    named(tmp_path / "file.txt", dead).write_text("half")
    temporary_names._machine.cache_clear()  # as in another process
    write(tmp_path / "file.txt")
    temporary_names._machine.cache_clear()
    assert len(list(tmp_path.iterdir())) == 2
