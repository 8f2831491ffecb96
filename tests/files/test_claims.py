"""Claims: one writer at a time, whatever becomes of it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import pytest

from ftrace.files import claims
from ftrace.files.claims import Claim, InUseError, claimed

HOLDER = """
import sys, time
from ftrace.files.claims import Claim
claim = Claim(sys.argv[1], "another command")
print("claimed", flush=True)
time.sleep(60)
"""


def start_holder(folder: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "claimed\n"
    return holder


@pytest.fixture(params=["flock", "filelock"])
def lock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How files are locked: as here, and as on systems without flock."""
    if request.param == "filelock":
        monkeypatch.setattr(claims, "fcntl", None)
    return str(request.param)


def test_the_second_is_told_who_works_there_until_the_first_ends(tmp_path: Path, lock: str) -> None:
    folder = tmp_path / "online"
    with claimed(folder, "OnlineTracIn"):
        with pytest.raises(InUseError) as error, claimed(folder, "ftrace attribute"):
            pass
        assert str(error.value).startswith(
            f"{str(folder)!r} is being written by OnlineTracIn (process {os.getpid()} on "
        )
        assert str(error.value).endswith("Wait for it to end, or name another output_dir")
        with claimed(tmp_path / "other", "ftrace attribute"):
            pass
    with claimed(folder, "ftrace attribute"):
        pass
    assert lock != "flock" or list(tmp_path.iterdir()) == []


def test_a_claim_ends_with_an_error_and_with_its_object(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path / "a", "first"):
        raise KeyboardInterrupt
    claim = Claim(tmp_path / "a", "second")
    claim.release()
    claim.release()
    claim = Claim(tmp_path / "a", "third")
    del claim
    with claimed(tmp_path / "a", "fourth"):
        pass


def test_two_paths_to_one_folder_are_one_claim(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    with claimed(tmp_path / "link", "first"), pytest.raises(InUseError):
        Claim(tmp_path / "x" / ".." / "folder", "second")


def test_a_killed_process_holds_nothing_and_a_living_one_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "online"
    holder = start_holder(folder)
    with pytest.raises(InUseError, match=rf"another command \(process {holder.pid} on "):
        Claim(folder, "second")
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert (tmp_path / ".online.claim").exists()
    with claimed(folder, "second"):
        assert (tmp_path / ".online.claim").read_text().startswith("second (process ")
    assert not (tmp_path / ".online.claim").exists()


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="needs fork")
def test_a_child_that_outlives_a_killed_process_does_not_hold_its_claim(tmp_path: Path) -> None:
    code = f"""
import os, time
from ftrace.files.claims import Claim
claim = Claim({str(tmp_path / "a")!r}, "parent")
child = os.fork()
if child:
    os.kill(os.getpid(), 9)
print(os.getpid(), flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert parent.wait() == -signal.SIGKILL
    try:
        with claimed(tmp_path / "a", "second"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        parent.communicate()


def test_a_child_that_ends_does_not_end_the_claim_of_its_parent(tmp_path: Path) -> None:
    code = f"""
import os, sys
from ftrace.files.claims import Claim
claim = Claim({str(tmp_path / "a")!r}, "parent")
child = os.fork()
if not child:
    sys.exit()
os.waitpid(child, 0)
try:
    Claim({str(tmp_path / "a")!r}, "second")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "is being written by parent" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_one_that_waits_says_for_whom_and_gets_its_turn(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    order = []
    first = Claim(tmp_path / "data", "first")

    def wait() -> None:
        with claimed(tmp_path / "data", "second", wait=True):
            order.append("second")

    thread = threading.Thread(target=wait)
    thread.start()
    said = ""
    while "waiting for first (process" not in said:
        assert thread.is_alive()
        said += capfd.readouterr().err
        time.sleep(0.01)
    order.append("first")
    first.release()
    thread.join()
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_many_at_once_are_never_two(tmp_path: Path) -> None:
    inside, most, errors = [], [], []

    def work() -> None:
        try:
            for _ in range(20):
                with claimed(tmp_path / "data", "worker", wait=True):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(most) == 80
    assert max(most) == 1
    assert list(tmp_path.iterdir()) == []


def test_folders_that_a_claim_has_made_go_if_they_stay_empty(tmp_path: Path) -> None:
    with claimed(tmp_path / "a" / "b" / "c", "first"):
        pass
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "a" / "b" / "c", "first"):
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


@pytest.mark.parametrize("planted", ["link", "hard link", "folder", "pipe"])
def test_what_somebody_has_planted_in_its_place_is_not_followed(tmp_path: Path, planted: str) -> None:
    victim, place = tmp_path / "victim", tmp_path / ".out.claim"
    victim.write_text("precious")
    if planted == "link":
        place.symlink_to(victim)
    elif planted == "hard link":
        place.hardlink_to(victim)
    elif planted == "folder":
        place.mkdir()
    else:
        os.mkfifo(place)
    with pytest.raises(ValueError, match=r"\.out\.claim': expected nothing, or a file of ftrace's own.*Delete it"):
        Claim(tmp_path / "out", "first")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_its_file_is_for_those_whom_the_umask_lets_in(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with claimed(tmp_path / "out", "first"):
            assert stat.S_IMODE((tmp_path / ".out.claim").stat().st_mode) == mode
    finally:
        os.umask(before)


def test_a_hostile_line_does_not_reach_the_terminal(tmp_path: Path) -> None:
    with claimed(tmp_path / "out", "a\x1b]0;title\x07\u202e\nsecond line"):
        with pytest.raises(InUseError) as error:
            Claim(tmp_path / "out", "second")
        assert str(error.value).isprintable()


def test_a_file_system_without_locks_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unable:
        LOCK_EX, LOCK_NB = 2, 4

        @staticmethod
        def flock(handle: int, how: int) -> None:
            raise OSError(95, "Operation not supported")

    monkeypatch.setattr(claims, "fcntl", Unable)
    monkeypatch.setattr(claims, "_unable_was_said", False)
    with pytest.warns(UserWarning, match="can't be locked on its file system"):
        Claim(tmp_path / "out", "first")
    with warnings.catch_warnings(action="error"):
        Claim(tmp_path / "out", "second")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_second_person_sees_who_works_there_and_takes_over_what_the_first_has_left() -> None:
    code = """
import os, sys
from ftrace.files.claims import claimed
os.setuid(65534)
try:
    with claimed(sys.argv[1], "somebody"):
        print(open(f"{os.path.dirname(sys.argv[1])}/.out.claim").read())
except ValueError as error:
    print(error)
"""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are for one user alone
        shared = Path(name)
        shared.chmod(0o777)

        def somebody() -> str:
            done = subprocess.run(
                [sys.executable, "-c", code, str(shared / "out")], capture_output=True, text=True, check=False
            )
            return done.stdout + done.stderr

        with claimed(shared / "out", "first"):
            assert "is being written by first (process" in somebody()
        (shared / ".out.claim").write_text("of a process that was killed\n")  # mode 0644, of root
        assert somebody().startswith("somebody (process")
        assert list(shared.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_where_no_file_can_be_made_it_says_so() -> None:
    with pytest.raises(OSError, match="proc"):
        Claim("/proc/nothing", "me")
