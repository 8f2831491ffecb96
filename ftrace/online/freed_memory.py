"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import time
from functools import cache
from typing import Any

_SECONDS = 1.0  # between two times at least: getting memory back takes a small model longer than its passes
_last = -_SECONDS


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
    it would come on top of the peak. Nothing happens within a second of the last time.
    """
    global _last
    trim, now = _malloc_trim(), time.monotonic()
    if trim is not None and now - _last >= _SECONDS:
        trim(0)
        _last = now
