"""Files and folders that are written whole or not at all.

A new version is written under a hidden temporary name beside the old one and takes its place in one step. A reader
finds the old version or the new one, never a half-written one, and a process that is killed leaves the old version
untouched. Its temporary file or folder then stays behind until the next writer of the same name removes it.

Processes and threads that write the same file or folder at once don't disturb each other: the last one to finish wins.
Work that takes long claims its folder instead: see :mod:`ftrace.files.claims`.

Errors of a full disk name the file or folder, whatever library met them.

All of this survives a killed process. With ``sync=True`` it survives a power failure too, at the cost of waiting for
the disk. It is meant for files whose predecessors, or sources, are deleted as soon as they are written.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ftrace.files.full_disks import full_disk_named
from ftrace.files.temporary_names import ASIDE, remove_leftovers, temporary_name

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


@contextmanager
def whole_file(path: str | os.PathLike[str], *, sync: bool = False) -> Iterator[Path]:
    """Write a file whole or not at all: yield a temporary path, and rename it to ``path`` at the end.

    If the block raises, ``path`` stays as it was, and the temporary file is removed.

    Args:
        path: The file. Its folder must exist; if it is a symbolic link, the file that it points to is replaced.
        sync: Whether to write the file through to the disk before it takes its place.

    Yields:
        An empty file to be written to or replaced. Its name ends in ``.tmp``, and its mode is that of any new file.
    """
    with temporary_file(path) as temporary:
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:  # safetensors replaces it by a file of mode 0600
            temporary.chmod(mode)
        put_file(temporary, path, sync=sync)


@contextmanager
def whole_folder(
    path: str | os.PathLike[str], *, sync: bool = False, replace: bool = True, only_earlier: bool = False
) -> Iterator[Path]:
    """Write a folder whole or not at all: yield a temporary folder, and put it in the place of ``path`` at the end.

    If the block raises, ``path`` stays as it was, and the temporary folder is removed.

    Args:
        path: The folder. Missing parents are made; if it is a symbolic link, the folder that it points to is replaced.
        sync: Whether to write all files through to the disk before the folder takes its place.
        replace: Whether to replace an earlier folder. If not, and one is there at the end, it stays, and the new one
            is dropped.
        only_earlier: Whether to replace nothing but what is there when the block begins.

    Yields:
        An empty folder.

    Raises:
        ValueError: If something else is there at the end, with ``only_earlier``.
    """
    earlier = {"earlier": folder_stamp(path)} if only_earlier else {}
    with temporary_folder(path) as temporary:
        yield temporary
        put_folder(temporary, path, sync=sync, replace=replace, **earlier)


@contextmanager
def temporary_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Make an empty file beside ``path``, and remove it at the end if it has not been given another name.

    :func:`whole_file` is this and :func:`put_file`; apart they serve where the file's name depends on its content.
    """
    file = _target(path)
    remove_leftovers(file)
    temporary = temporary_name(file)
    try:
        with full_disk_named(file):
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # its mode honours the umask
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Make an empty folder beside ``path``, and remove it at the end if it has not been given another name.

    :func:`whole_folder` is this and :func:`put_folder`; apart they serve where the folder is put in place by an object
    that lives longer than a block.
    """
    folder = _target(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    temporary = temporary_name(folder)
    try:
        with full_disk_named(folder):
            temporary.mkdir()
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_file(temporary: Path, path: str | os.PathLike[str], *, sync: bool = False) -> None:
    """Put a finished file in its place.

    Args:
        temporary: A file in the same file system.
        path: Where it goes; a file that is there is replaced.
        sync: Whether to write the file through to the disk first.
    """
    file = _target(path)
    if sync:
        _write_through(temporary)
    temporary.replace(file)
    if sync:
        _write_names_through(file.parent)


def folder_stamp(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """Return what tells a folder from one that takes its place later, or that is changed; empty if there is none."""
    try:
        facts = _target(path).stat()
    except FileNotFoundError:
        return ()
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns


def put_folder(
    temporary: Path,
    path: str | os.PathLike[str],
    *,
    sync: bool = False,
    replace: bool = True,
    earlier: tuple[int, ...] | None = None,
) -> None:
    """Put a finished folder in its place, and delete the earlier one that it replaces.

    Linux swaps both in one step. Where the system or the file system can't (NFS, macOS), the earlier folder is put
    aside first, so for the moment between two renames there is none.

    Args:
        temporary: A folder in the same file system.
        path: Where it goes.
        sync: Whether to write all files through to the disk first.
        replace: Whether to replace an earlier folder; if not, and one is there, nothing happens.
        earlier: The :func:`folder_stamp` of what may be replaced; default: any folder.

    Raises:
        ValueError: If something else is in its place than ``earlier``.
        NotADirectoryError: If something else than a folder is in its place.
    """
    folder = _target(path)
    if sync:
        for place, _, names in os.walk(temporary):
            for name in names:
                _write_through(Path(place, name))
            _write_names_through(Path(place))
    while True:  # until no other process comes in between
        if earlier is not None and folder_stamp(folder) != earlier:
            raise ValueError(
                f"{str(folder)!r} was written by somebody else meanwhile, and stays as it is. Name another folder"
            )
        try:
            temporary.rename(folder)  # to a free place, or that of an empty folder
            break
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        if not replace:
            return
        if _exchange(temporary, folder):
            shutil.rmtree(temporary, ignore_errors=True)  # the earlier one, which now has the temporary name
            break
        if _swap_by_renames(temporary, folder):
            break
    if sync:
        _write_names_through(folder.parent)


def _target(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.realpath(path))


def _exchange(folder: Path, other: Path) -> bool:
    """Swap the names of two folders in one step, if the system can; return whether it has."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    return not renameat2(_AT_FDCWD, os.fsencode(folder), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)


def _swap_by_renames(temporary: Path, folder: Path) -> bool:
    """Put ``folder`` aside and ``temporary`` in its place; return False if another process came in between."""
    aside = temporary.with_name(f"{temporary.name}{ASIDE}")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return False
    try:
        temporary.rename(folder)
    except OSError as error:
        with suppress(OSError):  # fails if another process's folder is in the place
            aside.rename(folder)
        if error.errno in _TAKEN:
            return False
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


def _write_through(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _write_names_through(folder: Path) -> None:
    """Write a folder's list of names to the disk: without it a renamed file may have its old name after a crash."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
