"""Digests of files: what a manifest notes of the files beside it, and whether they are still so.

A disk, a copy or a hand may change a file without a trace, and a flipped bit in an array of scores is a number like any
other. So each manifest notes the size and the XXH3 digest (128 bits) of each file, and each reader compares: sizes and
digests of small files before they are used. Of a large file, digests of its blocks are noted, too, so that a reader of
a part verifies that part; all of it is verified in the background of its first use, or at once on request. XXH3 finds
accidents; it is no protection against somebody who changes the manifest, too.
"""

from __future__ import annotations

import os
import queue
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

import xxhash
from msgspec import Meta

from ftrace.files.inside import inside

SMALL = 64 * 2**20  # bytes that are digested in the blink of an eye
BLOCK = 4 * 2**20
_HEX_OF_BLOCK = 16
_REMEDY = "Copy it again from where it came from, or make it anew"


class FileFacts(TypedDict):
    """Size and digest of a file, as a manifest notes them.

    Args:
        bytes: The size.
        xxh3_128: The digest of the whole file, in hexadecimal digits.
        xxh3_64_of_blocks: Of a large file, the digests of its blocks of 4 MiB one after another, 16 digits each.
    """

    bytes: Annotated[int, Meta(ge=0)]
    xxh3_128: str
    xxh3_64_of_blocks: NotRequired[str]


class DamagedError(ValueError):
    """Error of a file that isn't what was written."""


def facts_of_file(file: Path) -> FileFacts:
    """Read a file, and return its size and digests."""
    digest, size, of_blocks = xxhash.xxh3_128(), 0, []
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
            size += len(block)
            of_blocks.append(xxhash.xxh3_64_hexdigest(block))
    facts: FileFacts = {"bytes": size, "xxh3_128": digest.hexdigest()}
    return {**facts, "xxh3_64_of_blocks": "".join(of_blocks)} if size > SMALL else facts


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
        small: Files of at most this size, in bytes, are digested before their first use; default: 64 MiB.
    """

    def __init__(self, folder: Path, files: Mapping[str, FileFacts] | None, small: int | None = None) -> None:
        self._folder = folder
        self._files = files
        self._small = SMALL if small is None else small
        self._right: set[str] = set()
        self._right_blocks: dict[str, set[int]] = {}
        self._under_way: dict[str, _BackgroundCheck] = {}

    @property
    def files(self) -> list[str]:
        """Paths of the files of which something is noted."""
        return sorted(self._files or ())

    def has(self, name: str) -> bool:
        """Tell whether the folder must hold a file; of a folder without facts, whether it does."""
        return (inside(self._folder, name)).exists() if self._files is None else name in self._files

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
        if name in self._right:
            return
        if self._files is None:
            inside(self._folder, name)
            return
        if name in self._under_way and not at_once:
            self._under_way[name].raise_what_is_known()
            return
        facts = self._check_size(name)
        if facts["bytes"] > self._small and _stamp(inside(self._folder, name), facts) in _verified:
            self._right.add(name)
        elif facts["bytes"] <= self._small or at_once:
            self._check_digest(name)
        else:
            self._under_way[name] = _BackgroundCheck(lambda: self._check_digest(name))

    def check_part(self, name: str, begin: int, end: int) -> None:
        """Make sure, before a part of a file is used, that it is what was written.

        A small file is verified whole; of a large one, the blocks that the part lies in, at once.

        Args:
            name: The file's path in the folder.
            begin: The first byte.
            end: One past the last byte.

        Raises:
            DamagedError: As :meth:`check`.
        """
        facts = (self._files or {}).get(name)
        digests = None if facts is None else facts.get("xxh3_64_of_blocks")
        if digests is None or name in self._right:
            self.check(name)
            return
        if name not in self._right_blocks:
            self._check_size(name)
        right = self._right_blocks.setdefault(name, set())
        wanted = [block for block in range(begin // BLOCK, -(-end // BLOCK)) if block not in right]
        if wanted:
            self._check_blocks(name, wanted, digests)
            right.update(wanted)

    def check_sizes(self) -> None:
        """Make sure that all files of which something is noted are there, with the noted sizes.

        Raises:
            DamagedError: If one is missing, or larger or smaller.
        """
        for name in self.files:
            self._check_size(name)

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
        file = inside(self._folder, name)
        facts = (self._files or {}).get(name)
        if facts is None:
            raise DamagedError(f"{str(file)!r} is damaged or foreign: the manifest of its folder doesn't list it")
        with _readable(file):
            size = file.stat().st_size
        if size != facts["bytes"]:
            raise DamagedError(
                f"{str(file)!r} is damaged: expected {facts['bytes']:,} bytes, found {size:,}. {_REMEDY}"
            )
        return facts

    def _check_blocks(self, name: str, blocks: Iterable[int], digests: str) -> None:
        file = inside(self._folder, name)
        with _readable(file), file.open("rb") as stream:
            for block in blocks:
                stream.seek(block * BLOCK)
                found = xxhash.xxh3_64_hexdigest(stream.read(BLOCK))
                noted = digests[block * _HEX_OF_BLOCK : (block + 1) * _HEX_OF_BLOCK]
                if found != noted:
                    raise DamagedError(
                        f"{str(file)!r} is damaged from byte {block * BLOCK:,} on: the digest of that part is {found}, "
                        f"and {noted} was written. {_REMEDY}"
                    )

    def _check_digest(self, name: str) -> None:
        file = inside(self._folder, name)
        assert self._files is not None
        noted = self._files[name]
        with _readable(file):
            stamp = _stamp(file, noted)
            found = facts_of_file(file)["xxh3_128"]
        if found != noted["xxh3_128"]:
            digests = f"its digest is {found}, and {noted['xxh3_128']} was written"
            raise DamagedError(f"{str(file)!r} is damaged: {digests}. {_REMEDY}")
        self._right.add(name)
        _verified.add(stamp)


def _stamp(file: Path, facts: FileFacts) -> tuple[str, int, int, int, str]:
    """Tell a file that was verified from what may come into its place later."""
    stat = file.stat()
    return str(file.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns, facts["xxh3_128"]


_verified: set[tuple[str, int, int, int, str]] = set()


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn the error of a file that can't be read into one that says so."""
    try:
        yield
    except OSError as error:
        raise DamagedError(f"{str(file)!r} is missing or can't be read ({error.strerror}). {_REMEDY}") from error


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
