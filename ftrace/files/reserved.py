"""Space on disk that is taken before a file is written, so that a full disk is an error at the start.

A file that is mapped into memory has holes until they are written. Where the disk fills up under one, the process is
killed by SIGBUS without a word. Space that was reserved can't run out.
"""

from __future__ import annotations

import errno
import os
from typing import IO

_BLOCK = 2**20
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


def reserve(stream: IO[bytes], size: int) -> None:
    """Make a file at least so large, in space on disk that nobody else can take; what is new in it is zeros.

    Args:
        stream: The file, open for reading and writing. Its content and position stay as they are.
        size: Bytes.

    Raises:
        OSError: If the disk hasn't so much space (``ENOSPC``), or the user's quota doesn't allow it.

    Example:
        >>> from tempfile import TemporaryFile
        >>> with TemporaryFile() as stream:
        ...     reserve(stream, 5)
        ...     len(stream.read())
        5
    """
    stream.flush()
    descriptor = stream.fileno()
    end = os.fstat(descriptor).st_size
    if size <= end:
        return
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, end, size - end)
            return
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    for start in range(end, size, _BLOCK):  # macOS, and file systems that can't reserve
        _write_all(descriptor, bytes(min(_BLOCK, size - start)), start)


def _write_all(descriptor: int, content: bytes, offset: int) -> None:
    """Write at an offset, which a single call need not do to the end."""
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written
