"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


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
    it would come on top of the peak.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
