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
_GROWN_PAGES = 2**14  # 64 MiB, by which passes in a row may grow the process
_next = 0.0  # when it may be done again
_left_pages = 0  # in memory after the last time


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
    if time.monotonic() >= _next:
        _give_back()


def give_back_once_grown() -> None:
    """Do the same whenever the process has grown by 64 MiB since the last time.

    For passes that come rarely, but several in a row, such as those of a rehearsal: each takes other memory than the
    one before freed, so that together they would take far more than any of them.
    """
    if _malloc_trim() is not None and _resident_pages() > _left_pages + _GROWN_PAGES:
        _give_back()


def _give_back() -> None:
    global _next, _left_pages
    trim = _malloc_trim()
    if trim is None:
        return
    start, before = time.monotonic(), _resident_pages()
    trim(0)
    end, _left_pages = time.monotonic(), _resident_pages()
    given_back = max(0, before - _left_pages)
    _next = end + max(_SECONDS, (end - start + given_back * _SECONDS_OF_A_PAGE) / _SHARE)


def _resident_pages() -> int:
    """Count the pages of this process that are in memory; 0 where the system doesn't say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
