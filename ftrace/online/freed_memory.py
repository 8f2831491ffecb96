"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import time
from functools import cache
from pathlib import Path
from typing import Any

_SECONDS = 1.0  # between two times at least: getting memory back takes a small model longer than its passes
_SHARE = 0.01  # of the time, at most: a process with gigabytes of small pieces takes a tenth of a second each time
_SECONDS_OF_A_PAGE = 2e-6  # to get it again (measured: .7 s for 1.3 GiB)
_next = 0.0  # when it may be done again


@cache
def _malloc_trim() -> Any:
    """Find glibc's ``malloc_trim``; None with another C library."""
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):
        return None


def give_back_freed_memory() -> None:
    """Give memory that tensors on the CPU have freed back to the system, where the C library can.

    Passes beside the user's own leave free memory between tensors that stay. Training takes it again only in part, so
    it would come on top of the peak. Nothing happens within a second of the last time, nor within a hundred times as
    long as that took, and as it takes to get the memory again.
    """
    global _next
    trim, start = _malloc_trim(), time.monotonic()
    if trim is not None and start >= _next:
        before = _resident_pages()
        trim(0)
        end, given_back = time.monotonic(), max(0, before - _resident_pages())
        _next = end + max(_SECONDS, (end - start + given_back * _SECONDS_OF_A_PAGE) / _SHARE)


def _resident_pages() -> int:
    """Count the pages of this process that are in memory; 0 where the system doesn't say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
