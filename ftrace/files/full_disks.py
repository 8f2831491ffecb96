"""Errors of full disks in one form, whatever library met them."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What libraries say that keep the system's error to themselves: NumPy, safetensors, Arrow, faiss; the last is torch.
_SAID = re.compile(
    r"no space left|not enough free space|requested and \d+ written|disk quota|file too large|unexpected pos \d+ vs",
    re.IGNORECASE,
)
_NEXT_TO_NOTHING = 2**14  # bytes that are free when a library says nothing of the disk


class FullDiskError(OSError):
    """Error of a file or folder that doesn't fit on its disk.

    Args:
        number: The system's.
        path: The file or folder.
        needed: The bytes that it needs, if they are known.
    """

    def __init__(self, number: int, path: Path, needed: int | None) -> None:
        free = f"{_readable(shutil.disk_usage(path.parent).free)} free"
        facts = free if needed is None else f"{_readable(needed)} needed, {free}"
        text = f"{os.strerror(number)}: {str(path)!r} can't be written ({facts}). Make room, or write to another disk"
        super().__init__(number, text)
        self.needed = needed


@contextmanager
def full_disk_named(path: Path, needed: int | None = None) -> Iterator[None]:
    """Raise errors of a full disk as one that names what was being written.

    Args:
        path: The file or folder that is written in the block.
        needed: The bytes that it needs, if they are known.

    Raises:
        FullDiskError: If the disk was full, a quota was used up, or a file grew too large.
    """
    try:
        yield
    except Exception as error:
        number = _number_of(error, path.parent)
        if number is None:
            raise
        raise FullDiskError(number, path, getattr(error, "needed", needed)) from error


def _number_of(error: BaseException, folder: Path) -> int | None:
    """Return the system's number of an error if it, or what caused it, tells of a full disk."""
    if error.__cause__ is not None and (number := _number_of(error.__cause__, folder)) is not None:
        return number
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _FULL else None
    if _SAID.search(str(error)):
        return errno.EFBIG if "too large" in str(error).lower() else errno.ENOSPC
    if isinstance(error, OSError | RuntimeError) and shutil.disk_usage(folder).free < _NEXT_TO_NOTHING:
        return errno.ENOSPC
    return None


def _readable(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
