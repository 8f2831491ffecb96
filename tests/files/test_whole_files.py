"""Files and folders that are written whole or not at all, by several processes, and by processes that are killed."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftrace.files import whole_files
from ftrace.files.whole_files import put_file, temporary_file, whole_file, whole_folder

SIZE = 20_000  # bytes of a version: more than one write's
WRITERS = """
import sys
from pathlib import Path
from ftrace.files import whole_files

what, path, digit, count = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
if what == "folder-by-renames":
    whole_files._exchange = lambda folder, other: False
for _ in range(count):
    if what == "file":
        with whole_files.whole_file(path) as temporary:
            temporary.write_text(digit * SIZE)
        continue
    with whole_files.whole_folder(path) as temporary:
        for name in ("a", "b"):
            (temporary / name).write_text(digit * SIZE)
""".replace("SIZE", str(SIZE))


@pytest.fixture(params=["exchange", "renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How folders take each other's place: as the system can, and as all systems can."""
    if request.param == "renames":
        monkeypatch.setattr(whole_files, "_exchange", lambda folder, other: False)
    return str(request.param)


def start(*arguments: str | Path | int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITERS, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])


def running(*writers: subprocess.Popen[str]) -> Iterator[None]:
    """Once a look while any of the processes runs; an error of theirs fails the test."""
    while any(writer.poll() is None for writer in writers):
        yield
    for writer in writers:
        error = writer.communicate()[1]
        assert writer.returncode == 0, error


def write_folder(folder: Path, text: str) -> None:
    with whole_folder(folder) as temporary:
        (temporary / "a").write_text(text)
        (temporary / "inner").mkdir()
        (temporary / "inner" / "b").write_text(text)


def interrupted_write(file: Path) -> None:
    file.write_text("half")
    raise KeyboardInterrupt


def test_two_processes_write_one_file_and_a_reader_always_finds_it_whole(tmp_path: Path) -> None:
    file = tmp_path / "table.md"
    file.write_text("0" * SIZE)
    for _ in running(start("file", file, 1, 500), start("file", file, 2, 500)):
        text = file.read_text()
        assert text in {digit * SIZE for digit in "012"}, text[:10]
    assert file.read_text() in {digit * SIZE for digit in "12"}
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("what", ["folder", "folder-by-renames"])
def test_two_processes_write_one_folder_and_one_result_is_there_whole(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "store"
    write_folder(folder, "0" * SIZE)
    seen = set()
    for _ in running(start(what, folder, 1, 250), start(what, folder, 2, 250)):
        try:  # names in an open folder stay those of one version; its files may be deleted under the reader
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            assert what == "folder-by-renames" or whole_files.sys.platform != "linux"
            continue
        try:
            stream = os.fdopen(os.open("a", os.O_RDONLY, dir_fd=handle))
        except FileNotFoundError:
            continue
        finally:
            os.close(handle)
        with stream:
            text = stream.read()
        assert text in {digit * SIZE for digit in "012"}, text[:10]
        seen.add(text[0])
    assert len({(folder / name).read_text() for name in ("a", "b")}) == 1
    assert list(tmp_path.iterdir()) == [folder]
    assert seen


def test_threads_write_one_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    together = threading.Barrier(4)
    errors = []

    def write(text: str) -> None:
        together.wait()
        try:
            for _ in range(50):
                with whole_file(file) as temporary:
                    temporary.write_text(text)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(str(number) * SIZE,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert file.read_text() in {str(number) * SIZE for number in range(4)}
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_that_fails_stays_as_it_was(tmp_path: Path, sync: bool) -> None:
    file = tmp_path / "file"
    for before in (None, "old"):
        with pytest.raises(KeyboardInterrupt), whole_file(file, sync=sync) as temporary:
            interrupted_write(temporary)
        assert (file.read_text() if file.exists() else None) == before
        assert list(tmp_path.iterdir()) == ([file] if before else [])
        with whole_file(file, sync=sync) as temporary:
            temporary.write_text("old")


@pytest.mark.parametrize("sync", [False, True])
def test_a_folder_that_fails_stays_as_it_was(tmp_path: Path, way: str, sync: bool) -> None:
    folder = tmp_path / "missing" / "folder"
    with pytest.raises(KeyboardInterrupt), whole_folder(folder, sync=sync) as temporary:
        interrupted_write(temporary / "a")
    assert not list(folder.parent.iterdir())
    write_folder(folder, "old")
    with pytest.raises(KeyboardInterrupt), whole_folder(folder, sync=sync) as temporary:
        interrupted_write(temporary / "a")
    assert (folder / "a").read_text() == (folder / "inner" / "b").read_text() == "old"
    with whole_folder(folder, sync=sync) as temporary:
        (temporary / "c").write_text("new")
    assert [file.name for file in folder.iterdir()] == ["c"]  # nothing of the old one
    assert list(folder.parent.iterdir()) == [folder]


def test_an_earlier_folder_comes_back_if_the_new_one_cant_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "folder", "old")
    monkeypatch.setattr(whole_files, "_exchange", lambda folder, other: False)
    rename = Path.rename
    codes = iter([errno.ENOTEMPTY, errno.EIO])

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(next(codes), "of the test")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="of the test"):
        write_folder(tmp_path / "folder", "new")
    assert (tmp_path / "folder" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_another_process_may_remove_or_write_the_folder_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    write_folder(folder, "old")
    monkeypatch.setattr(whole_files, "_exchange", lambda folder, other: False)
    rename, happens = Path.rename, iter(["", "remove", "", "", "", "write", *[""] * 4])

    def interrupted(self: Path, target: Path) -> Path:
        event = next(happens)
        if event == "remove":  # before the old one is put aside
            rename(folder, tmp_path / "removed")
        if event == "write":  # after it has been put aside, before the new one takes its place
            folder.mkdir()
            (folder / "a").write_text("theirs")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    write_folder(folder, "first")
    assert (folder / "a").read_text() == "first"
    write_folder(folder, "second")
    assert next(happens, None) is None
    assert (folder / "a").read_text() == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "removed"]


def test_a_folder_that_is_there_may_stay(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with whole_folder(tmp_path / "folder", replace=False) as temporary:
            (temporary / "a").write_text(text)
    assert (tmp_path / "folder" / "a").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_is_not_replaced_by_a_folder_nor_a_folder_by_a_file(tmp_path: Path, way: str) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(NotADirectoryError):
        write_folder(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "text"
    write_folder(tmp_path / "folder", "old")
    with pytest.raises(IsADirectoryError), whole_file(tmp_path / "folder"):
        pass
    assert (tmp_path / "folder" / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("umask", [0o022, 0o007, 0o077])
def test_modes_are_those_of_any_new_file_and_folder(tmp_path: Path, way: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        (tmp_path / "plain").write_text("")
        (tmp_path / "plain-folder").mkdir()
        for _ in range(2):  # new, and in the place of an earlier one
            with whole_file(tmp_path / "file") as temporary:
                temporary.write_text("")
            with whole_file(tmp_path / "private") as temporary:  # as safetensors writes
                temporary.unlink()
                os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
            write_folder(tmp_path / "folder", "")
    finally:
        os.umask(before)

    def mode(name: str) -> int:
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    assert mode("plain") == 0o666 & ~umask
    assert mode("file") == mode("private") == mode("folder/a") == mode("plain")
    assert mode("folder") == mode("plain-folder")


def test_a_link_stays_a_link(tmp_path: Path, way: str) -> None:
    (tmp_path / "far").mkdir()
    for name in ("file", "folder"):
        (tmp_path / name).symlink_to(tmp_path / "far" / name)  # dangling at first
    for text in ("first", "second"):
        with whole_file(tmp_path / "file") as temporary:
            temporary.write_text(text)
        write_folder(tmp_path / "folder", text)
        assert (tmp_path / "file").is_symlink()
        assert (tmp_path / "folder").is_symlink()
        assert (tmp_path / "far" / "file").read_text() == (tmp_path / "far" / "folder" / "a").read_text() == text
    assert len(list(tmp_path.iterdir())) == 3
    assert len(list((tmp_path / "far").iterdir())) == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from ftrace.files.whole_files import whole_file, whole_folder

with whole_file(sys.argv[1] + "/file") as file, whole_folder(sys.argv[1] + "/folder") as folder:
    file.write_text("half")
    (folder / "a").write_text("half")
    os._exit(1) if sys.argv[2] == "exit" else os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("how", "code"), [("exit", 1), ("kill", -signal.SIGKILL)])
def test_a_process_that_is_killed_leaves_the_old_ones_and_the_next_one_removes_its_leftovers(
    tmp_path: Path, how: str, code: int
) -> None:
    with whole_file(tmp_path / "file") as temporary:
        temporary.write_text("old")
    write_folder(tmp_path / "folder", "old")
    command = [sys.executable, "-c", KILLED, str(tmp_path), how]
    assert subprocess.run(command, check=False, cwd=Path(__file__).parents[1]).returncode == code
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "a").read_text() == "old"
    left = {path.name for path in tmp_path.iterdir()} - {"file", "folder"}
    assert len(left) == 2
    assert all(name.startswith(".") and name.endswith(".tmp") for name in left)
    with whole_file(tmp_path / "file") as temporary:
        temporary.write_text("new")
    write_folder(tmp_path / "folder", "new")
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "a").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_temporary_names_have_the_process_and_are_never_the_same(tmp_path: Path) -> None:
    with temporary_file(tmp_path / "file") as one, temporary_file(tmp_path / "file") as other:
        assert one != other
        assert all(f"-{os.getpid()}-" in path.name for path in (one, other))
        one.write_text("by content")
        put_file(one, tmp_path / "content", sync=True)
    assert [path.name for path in tmp_path.iterdir()] == ["content"]


def test_writing_through_reaches_every_file_before_the_folder_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[str] = []

    def fsync(handle: int) -> None:
        reached.append(Path(f"/proc/self/fd/{handle}").readlink().name)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to tell which file a handle is of")
    monkeypatch.setattr(os, "fsync", fsync)
    write_folder(tmp_path / "folder", "")
    with whole_file(tmp_path / "file"):
        pass
    assert not reached
    with whole_folder(tmp_path / "folder", sync=True) as temporary:
        (temporary / "a").write_text("")
        (temporary / "inner").mkdir()
        (temporary / "inner" / "b").write_text("")
    assert reached == ["a", temporary.name, "b", "inner", tmp_path.name]
    reached.clear()
    with whole_file(tmp_path / "file", sync=True) as temporary:
        pass
    assert reached == [temporary.name, tmp_path.name]


def test_only_what_was_there_is_replaced(tmp_path: Path, way: str) -> None:
    folder = tmp_path / "folder"
    for text in ("first", "second"):  # of nothing, and of an earlier one
        with whole_folder(folder, only_earlier=True) as temporary:
            (temporary / "a").write_text(text)
        with (
            pytest.raises(ValueError, match=r"folder' was written by somebody else meanwhile, and stays as it is"),
            whole_folder(folder, only_earlier=True) as temporary,
        ):
            write_folder(folder, "of somebody else")
        assert (folder / "a").read_text() == "of somebody else"
    assert list(tmp_path.iterdir()) == [folder]
