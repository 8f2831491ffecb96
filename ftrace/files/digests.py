"""Digests of files: what a manifest notes of the files beside it, and whether they are still so.

A disk, a copy or a hand may change a file without a trace, and a flipped bit in an array of scores is a number like any
other. So each manifest notes the size and the XXH3 digest (128 bits) of each file, and each reader compares: sizes and
digests of small files before they are used, digests of large ones in the background of their first use, or at once on
request. XXH3 finds accidents; it is no protection against somebody who changes the manifest, too.
"""

from __future__ import annotations

import os
import queue
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict

import xxhash

SMALL = 64 * 2**20  # bytes that are digested in the blink of an eye
_CHUNK = 2**20


class FileFacts(TypedDict):
    """Size and digest of a file, as a manifest notes them."""

    bytes: int
    xxh3_128: str


class DamagedError(ValueError):
    """Error of a file that isn't what was written."""


def facts_of_file(file: Path) -> FileFacts:
    """Read a file, and return its size and digest."""
    digest, size = xxhash.xxh3_128(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


def facts_of_files(folder: Path, names: Iterable[str] | None = None) -> dict[str, FileFacts]:
    """Return the facts of files in a folder, for its manifest.

    Args:
        folder: The folder.
        names: Paths of the files in it, with forward slashes; default: all files, also those of folders inside, but
            hidden ones.
    """
    chosen = _names_in(folder) if names is None else sorted(names)
    return {name: facts_of_file(folder / name) for name in chosen}


def _names_in(folder: Path) -> list[str]:
    names = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


class FolderCheck:
    """Check of a folder's files against what its manifest notes of them.

    Args:
        folder: The folder.
        files: The manifest's facts by path in the folder; None for a folder of an older version, whose files have
            none and are taken as they are.
        small: Files of at most this size, in bytes, are digested before their first use.
    """

    def __init__(self, folder: Path, files: Mapping[str, FileFacts] | None, small: int = SMALL) -> None:
        self._folder = folder
        self._files = files
        self._small = small
        self._right: set[str] = set()
        self._under_way: dict[str, _BackgroundCheck] = {}

    @property
    def files(self) -> list[str]:
        """Paths of the files of which something is noted."""
        return sorted(self._files or ())

    def check(self, name: str, *, at_once: bool = False) -> None:
        """Make sure, before a file is used, that it is what was written.

        A large file is digested in the background: if it is damaged, a warning says so as soon as that is known, and
        every later call raises. Within a process that is done once, as long as its time and size don't change.

        Args:
            name: The file's path in the folder.
            at_once: Digest a large file now: for a reader that keeps what it makes of the file.

        Raises:
            DamagedError: If the file is missing, not noted, or not what was written.
        """
        if self._files is None or name in self._right:
            return
        if name in self._under_way and not at_once:
            self._under_way[name].raise_what_is_known()
            return
        facts = self._check_size(name)
        if facts["bytes"] > self._small and _stamp(self._folder / name, facts) in _verified:
            self._right.add(name)
        elif facts["bytes"] <= self._small or at_once:
            self._check_digest(name)
        else:
            self._under_way[name] = _BackgroundCheck(lambda: self._check_digest(name))

    def check_all(self) -> Iterator[str]:
        """Digest all files of which something is noted, and yield the name of each one that is right.

        Raises:
            DamagedError: As :meth:`check`, also for large files.
        """
        for name in self.files:
            self._check_size(name)
            self._check_digest(name)
            yield name

    def _check_size(self, name: str) -> FileFacts:
        file = self._folder / name
        facts = (self._files or {}).get(name)
        if facts is None:
            raise DamagedError(f"{str(file)!r} is damaged or foreign: the manifest of its folder doesn't list it")
        try:
            size = file.stat().st_size
        except OSError as error:
            raise DamagedError(f"{str(file)!r} is missing or can't be read ({error.strerror})") from error
        if size != facts["bytes"]:
            raise DamagedError(f"{str(file)!r} is damaged: expected {facts['bytes']:,} bytes, found {size:,}")
        return facts

    def _check_digest(self, name: str) -> None:
        file = self._folder / name
        assert self._files is not None
        try:
            stamp = _stamp(file, self._files[name])
            found = facts_of_file(file)
        except OSError as error:
            raise DamagedError(f"{str(file)!r} is missing or can't be read ({error.strerror})") from error
        if found != self._files[name]:
            raise DamagedError(
                f"{str(file)!r} is damaged: its digest is {found['xxh3_128']}, and {self._files[name]['xxh3_128']} was "
                "written. Copy it again from where it came from, or make it anew"
            )
        self._right.add(name)
        _verified.add(stamp)


def _stamp(file: Path, facts: FileFacts) -> tuple[str, int, int, int, str]:
    """Tell a file that was verified from what may come into its place later."""
    stat = file.stat()
    return str(file.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns, facts["xxh3_128"]


_verified: set[tuple[str, int, int, int, str]] = set()


class _BackgroundCheck:
    """Check that waits for its turn in the one thread that does such checks.

    Args:
        check: Raises DamagedError if something is damaged.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._error: DamagedError | None = None
        self._is_done = threading.Event()
        _all_under_way.append(self)
        _waiting.put(self)
        _start_thread()

    def run(self) -> None:
        """Do the check."""
        try:
            self._check()
        except DamagedError as error:
            self._error = error
            warnings.warn(str(error), stacklevel=1)
        finally:
            self._is_done.set()

    def raise_what_is_known(self) -> None:
        """Raise if the check has found damage so far."""
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Wait for the end of the check, and raise if it has found damage."""
        self._is_done.wait()
        self.raise_what_is_known()


_all_under_way: list[_BackgroundCheck] = []
_waiting: queue.SimpleQueue[_BackgroundCheck] = queue.SimpleQueue()
_thread: threading.Thread | None = None


def _start_thread() -> None:
    """Start the thread of all checks, if it isn't running: one, so that a folder of many files is read in order."""
    global _thread
    if _thread is None or not _thread.is_alive():
        _thread = threading.Thread(target=_run_all, name="ftrace-digest", daemon=True)
        _thread.start()


def _run_all() -> None:
    while True:
        _waiting.get().run()


def _forget_all() -> None:
    """In a forked process, which has no copy of the thread: its parent does the checks."""
    global _waiting
    _all_under_way.clear()
    _waiting = queue.SimpleQueue()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def finish_background_checks() -> None:
    """Wait for all checks in the background, such as before a command says that it has succeeded.

    Raises:
        DamagedError: If a file is damaged; the message is of the first.
    """
    errors = []
    while _all_under_way:
        try:
            _all_under_way.pop(0).wait()
        except DamagedError as error:
            errors.append(error)
    if errors:
        raise errors[0]
