"""Free memory: the least that the system, control groups of both versions and the process's own limits leave."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from ftrace.files import free_space

GIB = 2**30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with 8 GiB free, whose process is in no control group and has 1 GiB mapped."""
    monkeypatch.setattr(free_space, "PROC", tmp_path / "proc")
    monkeypatch.setattr(free_space, "CGROUPS", tmp_path / "cgroup")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: {16 * 2**20} kB\nMemAvailable: {8 * 2**20} kB\n")
    (tmp_path / "proc" / "self" / "status").write_text(f"Name: python\nVmSize: {2**20} kB\nVmData: {2**19} kB\n")
    return tmp_path


def group(folder: Path, limit: str, usage: str, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {GIB}\n")


def test_without_limits_it_is_what_the_system_has(system: Path) -> None:
    assert free_space.free_memory() == 8 * GIB
    assert free_space.free_addresses() == float("inf")


def test_a_limit_of_a_group_or_of_one_above_it_counts_and_cached_files_are_free(system: Path) -> None:
    second = ("memory.max", "memory.current", "inactive_file")
    (system / "proc" / "self" / "cgroup").write_text("0::/jobs/mine\n")
    group(system / "cgroup" / "jobs" / "mine", "max", f"{2 * GIB}", second)
    assert free_space.free_memory() == 8 * GIB
    group(system / "cgroup" / "jobs", f"{4 * GIB}", f"{2 * GIB}", second)
    assert free_space.free_memory() == 3 * GIB


def test_groups_of_the_first_version_count_too(system: Path) -> None:
    (system / "proc" / "self" / "cgroup").write_text("5:cpu,cpuacct:/\n4:memory:/box\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    group(system / "cgroup" / "memory" / "box", f"{2 * GIB}", f"{2 * GIB}", names)
    assert free_space.free_memory() == GIB


def test_a_limit_of_the_process_counts(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_AS: 3 * GIB, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], limits[which]))
    assert free_space.free_memory() == free_space.free_addresses() == 2 * GIB


def test_a_folder_that_will_be_made_has_the_space_of_its_disk(tmp_path: Path) -> None:
    assert free_space.free_disk(tmp_path / "not" / "yet") > 0
