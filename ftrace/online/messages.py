"""Warnings and other messages, shown once over all processes."""

from __future__ import annotations

import sys
import warnings

from ftrace.online.processes import process_rank
from ftrace.shown_text import encodable, plain_lines


def warn(message: str) -> None:
    """Warn, on process 0."""
    if process_rank() == 0:
        warnings.warn(plain_lines(message), stacklevel=3)


def tell(message: str) -> None:
    """Print, on process 0."""
    if process_rank() == 0:
        print(encodable(plain_lines(message), sys.stdout), flush=True)
