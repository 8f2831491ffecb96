"""Warnings and other messages, shown once over all processes."""

from __future__ import annotations

import warnings

from ftrace.online.processes import process_rank


def warn(message: str) -> None:
    """Warn, on process 0."""
    if process_rank() == 0:
        warnings.warn(message, stacklevel=3)


def tell(message: str) -> None:
    """Print, on process 0."""
    if process_rank() == 0:
        print(message, flush=True)
