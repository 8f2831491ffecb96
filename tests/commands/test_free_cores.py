"""Commands compute with as many threads as there are free cores, and say so; nobody else's number is changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ftrace.commands import free_cores
from ftrace.commands.free_cores import Moment, others_between, threads_for

ROOT = Path(__file__).parents[2]
LOOK = """
import os, sys
from ftrace.commands import free_cores
from ftrace.commands.free_cores import Moment
{before}
free_cores.watch_cores()
moments = iter([Moment(100.0, 50.0, 1.0), Moment(110.0, 50.0 + 10 * {busy} + 5.0, 6.0)])
if free_cores._began is not None:
    free_cores._began = next(moments)
free_cores.Moment.now = staticmethod(lambda: next(moments))
os.cpu_count, free_cores.allowed_cores = (lambda: 4), (lambda: {allowed})
free_cores.use_free_cores()
free_cores.use_free_cores()
import torch
print(torch.get_num_threads())
"""


def look(busy: float, allowed: int = 4, before: str = "", **environment: str) -> tuple[int, str]:
    """Begin a command while others keep some of four cores busy: its threads, and what it says."""
    known = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    code = LOOK.format(busy=busy, allowed=allowed, before=before)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**known, **environment}, capture_output=True, text=True, check=True
    )
    return int(done.stdout), done.stderr


def test_threads_are_what_others_leave() -> None:
    threads, said = look(busy=2.7)
    assert threads == 1
    assert said.splitlines() == [
        "Computing with 1 thread: of 4 cores, others keep 2.7 busy. OMP_NUM_THREADS=N sets another number"
    ]
    assert look(busy=0.1, allowed=3)[0] == 3


def test_the_number_of_the_user_stays() -> None:
    assert look(busy=0.0, OMP_NUM_THREADS="2") == (2, "")
    assert look(busy=3.9, before="import torch\ntorch.set_num_threads(3)") == (3, "")


@pytest.mark.parametrize(
    ("allowed", "cores", "busy", "threads"), [(2, 2, 0.0, 2), (2, 2, 12.0, 1), (1, 8, 0.0, 1), (8, 8, 5.4, 3)]
)
def test_there_is_always_a_thread_and_never_more_than_is_allowed(
    allowed: int, cores: int, busy: float, threads: int
) -> None:
    assert threads_for(allowed, cores, busy) == threads


def test_own_work_is_not_that_of_others() -> None:
    assert others_between(Moment(0.0, 10.0, 0.0), Moment(10.0, 30.0, 10.0)) == pytest.approx(1.0)
    assert others_between(Moment(0.0, 10.0, 0.0), Moment(10.0, 10.0, 1.0)) == 0.0


def test_where_the_system_says_nothing_the_load_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 0.0, 0.0), raising=False)
    assert others_between(Moment(0.0, None, 0.0), Moment(1.0, None, 0.0)) == 1.5
    monkeypatch.delattr(os, "getloadavg")
    assert others_between(Moment(0.0, None, 0.0), Moment(1.0, None, 0.0)) is None


def test_time_of_all_cores_and_quotas_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    (tmp_path / "stat").write_text(f"cpu  {3 * ticks} {ticks} {2 * ticks} 900 90 0 {ticks} 0 50 0\ncpu0 1 2 3\n")
    monkeypatch.setattr(free_cores, "_STAT", tmp_path / "stat")
    assert free_cores._busy_seconds() == 7.0
    monkeypatch.setattr(free_cores, "_STAT", tmp_path / "absent")
    assert free_cores._busy_seconds() is None
    monkeypatch.setattr(free_cores, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(free_cores, "_QUOTA_V1", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert free_cores.allowed_cores() == 4
    for text, cores in (("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("nonsense", 4)):
        (tmp_path / "cpu.max").write_text(text)
        assert free_cores.allowed_cores() == cores
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu.cfs_quota_us").write_text("300000")
    (tmp_path / "cpu.cfs_period_us").write_text("100000")
    assert free_cores.allowed_cores() == 3
