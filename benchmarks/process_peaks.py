"""Peaks of memory, each measured in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any


def resident_peak_gib() -> float:
    """Peak of this process's own resident memory, in GiB (Linux): getrusage would hand on that of its parent."""
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) / 2**20


def in_own_process(measure: Callable[..., None], *arguments: Any) -> float:
    """Return what a function puts into the queue that it is given last, in a process that has run nothing else."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measure, args=(*arguments, queue))
    process.start()
    found: float = queue.get(timeout=600)
    process.join()
    return found
