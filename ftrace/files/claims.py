"""Claims: the exclusive use of a folder, or of a file, by one process from the start of its work to the end.

Beside the folder lies a hidden file, ``.NAME.claim``. Its holder keeps it locked (``flock``) and has written into it
who works there, so that others can say it. The system frees the lock of a process that has died, however it died; the
holder removes the file when its work ends. A file that a killed process has left behind is taken over.

Of a folder that nothing can be written beside, or that is a disk of its own, the file lies in the folder.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ftrace.shown_text import one_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_UNABLE = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EBADF)
_LONGEST_LINE = 500
_MOST_ATTEMPTS = 100
_HANDLES: set[int] = set()  # of this process's claims
_OTHER_LOCKS: dict[int, Any] = {}  # by handle, where the system has no flock
_unable_was_said = False


class InUseError(ValueError):
    """Another process, or another writer of this one, works in the folder."""


class Claim:
    """The exclusive use of a path by this process, until it is released or the process ends.

    Processes that are forked meanwhile don't share it. An object that is no longer referenced releases its claim.

    Args:
        path: A file or folder, there or not; if it is a symbolic link, what it points to. Missing parents are made; of
            these, the ones that are empty at the end are removed.
        who: Who works there, for the messages of others.
        remedy: What else others can do but wait, for this one's message.
        wait: Whether to wait until the path is free, and say so on standard error; otherwise that is an error.

    Raises:
        InUseError: If somebody else has claimed the path.
        ValueError: If something else is where the claim's file should be.
    """

    def __init__(
        self, path: str | os.PathLike[str], who: str, remedy: str = "name another output_dir", *, wait: bool = False
    ) -> None:
        self.path = Path(os.path.realpath(path))
        file = _file_of(self.path)
        made = [parent for parent in file.parents if not parent.exists()]
        handle = _take(file, self.path, who, remedy, wait=wait)
        _HANDLES.add(handle)
        self._release = weakref.finalize(self, _release, handle, file, made, os.getpid())

    def release(self) -> None:
        """Let others in; nothing if that has been done."""
        self._release()


@contextmanager
def claimed(
    path: str | os.PathLike[str],
    who: str,
    remedy: str = "name another output_dir",
    *,
    wait: bool = False,
    by_this_process: bool = True,
) -> Iterator[None]:
    """Claim a path as long as the block runs; see :class:`Claim`.

    Args:
        path: As there.
        who: As there.
        remedy: As there.
        wait: As there.
        by_this_process: Whether this is the one that claims for all processes of its job; if not, nothing happens.
    """
    claim = Claim(path, who, remedy, wait=wait) if by_this_process else None
    try:
        yield
    finally:
        if claim is not None:
            claim.release()


def _file_of(target: Path) -> Path:
    if target.is_dir() and (os.path.ismount(target) or not os.access(target.parent, os.W_OK)):
        return target / ".claim"
    return target.with_name(f".{target.name}.claim")


def _take(file: Path, target: Path, who: str, remedy: str, *, wait: bool) -> int:
    """Open and lock the file of a claim; return the open file's descriptor."""
    was_said = False
    while True:
        handle = _open(file)
        try:
            if not _lock(handle, file, wait=False):
                holder = _holder(handle)
                if not wait:
                    raise InUseError(f"{str(target)!r} is being written by {holder}. Wait for it to end, or {remedy}")
                if not was_said:
                    line = f"{who}: waiting for {holder}, which writes {str(target)!r}"
                    print(one_line(line), file=sys.stderr, flush=True)
                    was_said = True
                _lock(handle, file, wait=True)
            if _is_at(handle, file) and _write_line(handle, file, who):
                return handle
        except BaseException:
            _close(handle)
            raise
        _close(handle)  # its holder has removed it in between: make a new one


def _open(file: Path) -> int:
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    attempts = 0
    while True:
        attempts += 1
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT | flags, 0o666)  # its mode honours the umask
            break
        except FileNotFoundError:  # another process has removed the empty folder that it had made
            if attempts == _MOST_ATTEMPTS:  # or no file can be made there, as in /proc
                raise
        except PermissionError:
            if not file.exists():
                raise
            handle = os.open(file, os.O_RDONLY | flags)  # another user's, who doesn't share it: it can be locked
            break
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise _foreign(file) from error
            raise
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
        os.close(handle)
        raise _foreign(file)
    return handle


def _foreign(file: Path) -> ValueError:
    return ValueError(f"{str(file)!r}: expected nothing, or a file of ftrace's own, found a link or no file. Delete it")


def _lock(handle: int, file: Path, *, wait: bool) -> bool:
    """Lock an open file; return whether it is ours now."""
    if fcntl is None:
        return _lock_without_flock(handle, file, wait=wait)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno not in _UNABLE:
            raise
        _say_unable(file)
    return True


def _lock_without_flock(handle: int, file: Path, *, wait: bool) -> bool:
    from filelock import FileLock, Timeout

    lock = FileLock(f"{file}.lock", timeout=-1 if wait else 0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return False
    _OTHER_LOCKS[handle] = lock
    return True


def _say_unable(file: Path) -> None:
    global _unable_was_said
    if not _unable_was_said:
        _unable_was_said = True
        warnings.warn(
            f"files in {str(file.parent)!r} can't be locked on its file system. See to it that no two processes write "
            "the same folder at once",
            stacklevel=2,
        )


def _is_at(handle: int, file: Path) -> bool:
    """Whether an open file still is the one of that name, which its last holder may have removed."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(file))
    except FileNotFoundError:
        return False


def _write_line(handle: int, file: Path, who: str) -> bool:
    """Write who works there; return whether the claim holds. Another user's old file is removed, for one of ours."""
    line = f"{who} (process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')})\n"
    try:
        os.ftruncate(handle, 0)
        os.write(handle, line.encode())
    except OSError as error:  # EINVAL or EBADF: it is open for reading alone
        if error.errno not in (errno.EINVAL, errno.EBADF):
            return True  # on a full disk the claim holds, too
        try:
            file.unlink()
        except PermissionError:
            return True
        return False
    return True


def _holder(handle: int) -> str:
    """Read who holds a claim: one line, of characters that can be printed."""
    os.lseek(handle, 0, os.SEEK_SET)
    line = os.read(handle, _LONGEST_LINE).decode(errors="replace").partition("\n")[0]
    return "".join(character if character.isprintable() else "?" for character in line) or "another process"


def _close(handle: int) -> None:
    if handle in _OTHER_LOCKS:
        _OTHER_LOCKS.pop(handle).release()
    os.close(handle)


def _release(handle: int, file: Path, made: list[Path], process: int) -> None:
    if os.getpid() != process:  # a fork, which has closed the handle
        return
    _HANDLES.discard(handle)
    with suppress(OSError):
        if _is_at(handle, file):
            file.unlink()
    _close(handle)
    for parent in made:
        try:
            parent.rmdir()
        except OSError:  # it is not empty
            break


def _drop_in_fork() -> None:
    """Close the handles of the parent's claims: otherwise a child that outlives it would keep them locked."""
    for handle in _HANDLES:
        with suppress(OSError):
            os.close(handle)
    _HANDLES.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_in_fork)
