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


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Raise errors of a full disk as one ``OSError`` that names what was being written.

    Args:
        path: The file or folder that is written in the block.

    Raises:
        OSError: With the system's number, if the disk was full, a quota was used up, or a file grew too large.
    """
    try:
        yield
    except Exception as error:
        number = _number_of(error, path.parent)
        if number is None:
            raise
        place = f"{str(path)!r} can't be written ({_free(path.parent)})"
        raise OSError(number, f"{os.strerror(number)}: {place}. Make room, or write to another disk") from error


def _number_of(error: Exception, folder: Path) -> int | None:
    """Return the system's number of an error if it tells of a full disk."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _FULL else None
    if _SAID.search(str(error)):
        return errno.EFBIG if "too large" in str(error).lower() else errno.ENOSPC
    if isinstance(error, OSError | RuntimeError) and shutil.disk_usage(folder).free < _NEXT_TO_NOTHING:
        return errno.ENOSPC
    return None


def _free(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 2**20:,.1f} MiB are free there"
