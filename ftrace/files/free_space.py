"""Memory and space on disk that this process may still take."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def free_memory() -> float:
    """Return the bytes of memory that are left: by the system, the control groups and the limits of this process.

    Memory that holds files which can be read again counts as free.
    """
    return min(_of_system(), free_addresses(), *_of_control_groups())


def free_addresses() -> float:
    """Return the bytes that this process may still map, files included; infinity without a limit (``ulimit -v``)."""
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    left = math.inf
    used = _numbers(PROC / "self" / "status")
    for limit, entry in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            left = min(left, max(0, soft - 1024 * used.get(entry, 0)))
    return left


def free_disk(folder: Path) -> int:
    """Return the bytes that are free where a folder is, or will be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _of_system() -> float:
    available = _numbers(PROC / "meminfo").get("MemAvailable:")
    if available is not None:
        return 1024 * available
    try:  # macOS doesn't say what is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return math.inf


def _of_control_groups() -> Iterator[float]:
    """What each control group that this process is in leaves it, of version 2 and of version 1."""
    lines = []
    with suppress(OSError):
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                yield _left_in(folder, *names)


def _left_in(folder: Path, limit: str, usage: str, reclaimable: str) -> float:
    try:
        allowed = int((folder / limit).read_text())  # "max" without a limit
        used = int((folder / usage).read_text())
    except (OSError, ValueError):
        return math.inf
    return max(0, allowed - used + _numbers(folder / "memory.stat").get(reclaimable, 0))


def _numbers(file: Path) -> dict[str, int]:
    """Read the first number after each name in a file of lines; nothing if there is no such file."""
    with suppress(OSError):
        words = (line.split() for line in file.read_text().splitlines())
        return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}
    return {}
