"""How many threads a command computes with: as many as there are cores that nobody else uses.

The threads of one operation wait for each other. On a machine whose cores are busy they wait long, and two threads can
take ten times as long as one. So commands look which share of the cores others have used since they began, and take the
rest; a number that the user sets with ``OMP_NUM_THREADS`` stays as it is. The library, in anybody's own program, leaves
torch's number alone.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ftrace.launched_processes import is_first_process
from ftrace.shown_text import counted

_SET_BY_USERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_STAT = Path("/proc/stat")
_QUOTA, _QUOTA_V1 = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu")


@dataclass(frozen=True)
class Moment:
    """What the machine has done until a moment.

    Args:
        seconds: By a clock that never goes back.
        of_all: Seconds that all cores were busy, added up; None where the system doesn't say.
        of_this: Those for this process.
    """

    seconds: float
    of_all: float | None
    of_this: float

    @staticmethod
    def now() -> Moment:
        """Look at the clocks."""
        return Moment(time.monotonic(), _busy_seconds(), time.process_time())


_began: Moment | None = None


def watch_cores() -> None:
    """Begin to watch what others do, as a command begins; not where torch is there already, in a user's own program."""
    global _began
    _began = None if "torch" in sys.modules or any(map(os.environ.get, _SET_BY_USERS)) else Moment.now()


def use_free_cores() -> None:
    """Let torch compute with as many threads as there are free cores, and say so; before a command computes."""
    global _began
    if _began is None:
        return
    busy = others_between(_began, Moment.now())
    _began = None  # once a command
    if busy is None:
        return
    import torch

    allowed = allowed_cores()
    threads = threads_for(allowed, os.cpu_count() or 1, busy)
    torch.set_num_threads(threads)
    if is_first_process():
        print(
            f"Computing with {counted(threads, 'thread')}: of {counted(os.cpu_count() or 1, 'core')}, others keep "
            f"{busy:.1f} busy{_limited(allowed)}. OMP_NUM_THREADS=N sets another number",
            file=sys.stderr,
            flush=True,
        )


def threads_for(allowed: int, cores: int, busy: float) -> int:
    """Choose a number of threads, at least 1.

    Args:
        allowed: How many cores this process may use.
        cores: How many the machine has.
        busy: How many of them others keep busy.

    Example:
        >>> [threads_for(2, 2, busy) for busy in (0.0, 0.4, 0.6, 1.9, 2.0)], threads_for(4, 64, 10.2)
        ([2, 2, 1, 1, 1], 4)
    """
    return max(1, min(allowed, round(cores - busy)))


def others_between(first: Moment, second: Moment) -> float | None:
    """Count the cores that others have kept busy between two moments, on average; None where that isn't known."""
    if first.of_all is None or second.of_all is None:
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    seconds = max(1e-9, second.seconds - first.seconds)
    return max(0.0, (second.of_all - first.of_all - (second.of_this - first.of_this)) / seconds)


def allowed_cores() -> int:
    """Count the cores that this process may use, by its affinity and the quota of its container."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    quota = _quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def _limited(allowed: int) -> str:
    return "" if allowed == (os.cpu_count() or 1) else f", and this process may use {allowed}"


def _busy_seconds() -> float | None:
    """Read how long all cores were busy since the machine started; Linux says so."""
    try:
        user, nice, system, _, _, *rest = map(int, _STAT.read_text(encoding="ascii").partition("\n")[0].split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + sum(rest)) / float(os.sysconf("SC_CLK_TCK"))


def _quota() -> float | None:
    """Read how many cores the control group may use; None if there is no limit."""
    try:
        if _QUOTA.is_file():
            limit, period = _QUOTA.read_text(encoding="ascii").split()
            return None if limit == "max" else int(limit) / int(period)
        if (_QUOTA_V1 / "cpu.cfs_quota_us").is_file():
            quota, of = (int((_QUOTA_V1 / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            return quota / of if quota > 0 else None
    except (OSError, ValueError):
        pass
    return None
