"""What `faults.py` does to commands: kills, signals, full disks, damaged files, two at once; and what must hold then.

Whatever happens, the same command given again afterwards must leave exactly what it leaves undisturbed, with nothing
beside it.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_commands import Command, Ended, Started, copy, outcome, same

SECONDS_TO_END = 20.0  # after a signal, on a machine that has other work
_LIMIT = 300.0


@dataclass
class Undisturbed:
    """What a command leaves when nobody disturbs it.

    Args:
        seconds: How long it took.
        leaves: What it wrote, without what differs from one time to the next.
        names: All files in the working directory afterwards.
        output: What it printed.
    """

    seconds: float
    leaves: dict[str, Any]
    names: set[str]
    output: str


@dataclass
class Bench:
    """A run that is copied for each trial.

    Args:
        base: The folder of the run.
        scratch: Where copies go.
        generator: Draws when and what to disturb.
    """

    base: Path
    scratch: Path
    generator: random.Random
    known: dict[str, Undisturbed] = field(default_factory=dict)

    @contextmanager
    def copied(self, name: str = "trial") -> Any:
        """Copy the run for one trial."""
        folder = copy(self.base, self.scratch / f"{name}-{self.generator.randrange(10**9)}")
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def undisturbed(self, command: Command) -> Undisturbed:
        """Run a command twice, once in its life, and keep what both times have in common."""
        if command.name not in self.known:
            with self.copied() as one, self.copied() as other:
                began = time.perf_counter()
                first = succeed(command, one)
                seconds = time.perf_counter() - began
                succeed(command, other)
                leaves, again = outcome(one, command.writes), outcome(other, command.writes)
                stable = {name: leaf for name, leaf in leaves.items() if name in again and same(leaf, again[name])}
                self.known[command.name] = Undisturbed(seconds, stable, names_in(one), first.output)
        return self.known[command.name]


def succeed(command: Command, folder: Path) -> Ended:
    """Run a command that must succeed."""
    ended = Started(command, folder).wait(_LIMIT)
    if ended.code:
        raise RuntimeError(f"ftrace {command.name} ended with {ended.code} undisturbed: {ended.errors[-2000:]}")
    return ended


def names_in(folder: Path) -> set[str]:
    """List all files and folders, hidden ones included, with what is random in their names left out.

    Locks of Hugging Face's datasets are left out, whose names contain the folder's.
    """
    paths = (path for path in folder.rglob("*") if path.suffix != ".lock")
    return {re.sub(r"[0-9a-f]{8,}", "#", str(path.relative_to(folder))) for path in paths}


def left_behind(folder: Path, command: Command, before: set[str]) -> str:
    """Say what a command that has ended in an error has left, but an interrupted training and finished work."""
    partial = folder / f"{command.writes}-partial"
    has_work = partial.is_dir() and any(file.suffix == ".npz" for file in partial.iterdir())
    kept = command.writes if command.name == "fit" else f"{command.writes}-partial" if has_work else "/"
    more = {name for name in names_in(folder) - before if not name.startswith(kept)}
    return f"left behind: {', '.join(sorted(more)[:3])}" if more else ""


def wrong_after(bench: Bench, command: Command, folder: Path) -> str:
    """Give the command again, and say what is different from an undisturbed one; nothing if nothing is."""
    ended = Started(command, folder).wait(_LIMIT)
    if ended.code:
        return f"again: exit code {ended.code}: {last_line(ended)}"
    return different(bench, command, folder)


def different(bench: Bench, command: Command, folder: Path) -> str:
    """Say what a command has left that is different from what it leaves undisturbed."""
    expected = bench.undisturbed(command)
    found = outcome(folder, command.writes)
    if command.name == "fit" and (folder / "runs/synth_demo/version_2").exists():  # the killed one is version_1
        shutil.rmtree(folder / "runs/synth_demo/version_1")
        (folder / "runs/synth_demo/version_2").rename(folder / "runs/synth_demo/version_1")
        found = outcome(folder, command.writes)
    for name, leaf in expected.leaves.items():
        if name not in found:
            return f"{name} is missing"
        if not same(leaf, found[name]):
            return f"{name} is different"
    more = names_in(folder) - expected.names
    return f"left behind: {', '.join(sorted(more)[:3])}" if more else ""


def wrong_ending(ended: Ended, codes: tuple[int, ...]) -> str:
    """Say what is wrong with how a command ended; nothing if it did so with one of these codes, in one line."""
    if ended.code not in codes:
        return f"exit code {ended.code} instead of {codes}: {last_line(ended)}"
    if "Traceback" in ended.errors or "Traceback" in ended.output:
        return f"a traceback, ending in {last_line(ended)}"
    lines = [line for line in ended.errors.splitlines() if line.startswith("ftrace ")]
    if ended.code and len(lines) != 1:
        return f"expected one line that says why, found {len(lines)}: {ended.errors[-300:]!r}"
    return ""


def last_line(ended: Ended) -> str:
    """Return the last line of a command's errors."""
    return next((line[:300] for line in reversed(ended.errors.splitlines()) if line.strip()), "nothing was said")


def killed(bench: Bench, command: Command) -> str:
    """Kill a command at a random time, and give it again."""
    return _interrupted(bench, command, signal.SIGKILL, lambda ended: "")


def told_to_end(bench: Bench, command: Command) -> str:
    """Send SIGINT or SIGTERM at a random time, and give the command again."""
    number = bench.generator.choice([signal.SIGINT, signal.SIGTERM])
    return _interrupted(bench, command, number, lambda ended: wrong_ending(ended, (0, 128 + number)))


def _interrupted(bench: Bench, command: Command, number: int, check: Callable[[Ended], str]) -> str:
    after = bench.generator.uniform(0.1, 1.0) * bench.undisturbed(command).seconds
    with bench.copied() as folder:
        started = Started(command, folder)
        time.sleep(after)
        started.signal(number)
        ended = started.wait(_LIMIT if number == signal.SIGKILL else SECONDS_TO_END)
        what = f"signal {number} after {after:.1f} s: "
        wrong = check(ended)
        if not wrong and number != signal.SIGKILL:
            hidden = {name for name in names_in(folder) if ".tmp" in name}
            wrong = f"left behind: {sorted(hidden)[0]}" if hidden else ""
        wrong = wrong or wrong_after(bench, command, folder)
        return what + wrong if wrong else ""


def on_a_full_disk(bench: Bench, command: Command) -> str:
    """Run a command on a disk that fills up while it writes; make room, and give it again."""
    expected = bench.undisturbed(command)
    with bench.copied() as folder, _small_disk(bench, folder) as disk:
        before = _used(disk)
        room = bench.generator.uniform(0.0, 1.0) * _written(bench, command)
        filler = disk / "filler"
        free = shutil.disk_usage(disk).free
        filler.write_bytes(b"\0" * max(0, int(free - room)))
        names = names_in(disk)
        ended = Started(command, disk).wait(_LIMIT)
        wrong = wrong_ending(ended, (0, 2))
        if not wrong and ended.code:
            wrong = left_behind(disk, command, names | expected.names)
        filler.unlink(missing_ok=True)
        wrong = wrong or wrong_after(bench, command, disk)
        return f"with room for {room:,.0f} bytes ({before:,} used): {wrong}" if wrong else ""


@contextmanager
def _small_disk(bench: Bench, folder: Path) -> Any:
    """Mount a file system in memory, and move the run there. It takes the rights of root."""
    disk = bench.scratch / f"disk-{bench.generator.randrange(10**9)}"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(disk)], check=True)
    try:
        shutil.copytree(folder, disk, symlinks=True, dirs_exist_ok=True)
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
        with suppress(OSError):
            disk.rmdir()


def _used(disk: Path) -> int:
    return shutil.disk_usage(disk).used


def _written(bench: Bench, command: Command) -> int:
    """Return how many bytes a command writes."""
    with bench.copied() as folder:
        succeed(command, folder)
        files = [folder / command.writes, *(folder / command.writes).rglob("*")]
        return sum(file.stat().st_size for file in files if file.is_file()) + 4096


def with_damage(bench: Bench, command: Command) -> str:
    """Flip a bit of a file that a command reads, or cut it, or exchange it: an error, or the same as before."""
    expected = bench.undisturbed(command)
    with bench.copied() as folder:
        places = [place for name in command.reads for place in (folder / name, *sorted((folder / name).rglob("*")))]
        file = bench.generator.choice([place for place in places if place.is_file() and place.stat().st_size])
        how = _damage(file, bench.generator)
        names = names_in(folder)
        ended = Started(command, folder).wait(_LIMIT)
        wrong = wrong_ending(ended, (0, 2))
        if not wrong and ended.code == 0:
            wrong = different(bench, command, folder)
            if not wrong and not command.writes and _words(ended.output) != _words(expected.output):
                wrong = "it said something else, and no error"
        elif not wrong:
            wrong = left_behind(folder, command, names | expected.names)
        return f"{file.relative_to(folder)} {how}: {wrong}" if wrong else ""


def _words(text: str) -> list[str]:
    return text.split()


def _damage(file: Path, generator: random.Random) -> str:
    content = bytearray(file.read_bytes())
    how = generator.choice(["flipped", "flipped", "flipped", "cut", "emptied", "lengthened"])
    place = generator.randrange(len(content))
    if how == "flipped":
        bit = generator.randrange(8)
        content[place] ^= 1 << bit
        how = f"with bit {bit} of byte {place} flipped"
    elif how == "cut":
        del content[place:]
        how = f"cut at byte {place}"
    elif how == "emptied":
        content.clear()
    else:
        content += b"\0" * 8
    file.write_bytes(bytes(content))
    return how


def two_at_once(bench: Bench, command: Command) -> str:
    """Give a command twice at once: each succeeds, or says in one line who works there."""
    with bench.copied() as folder:
        first = Started(command, folder)
        time.sleep(bench.generator.uniform(0.0, 0.5) * bench.undisturbed(command).seconds)
        second = Started(command, folder)
        ended = [started.wait(_LIMIT) for started in (first, second)]
        wrong = next(filter(None, (wrong_ending(each, (0, 2)) for each in ended)), "")
        if not wrong and all(each.code for each in ended):
            wrong = f"neither succeeded: {last_line(ended[0])}"
        both = folder / "runs/synth_demo/version_2"
        if command.name == "fit" and both.exists():
            shutil.rmtree(both)
        wrong = wrong or different(bench, command, folder)
        return wrong and f"two at once: {wrong}"


TRIALS: dict[str, Callable[[Bench, Command], str]] = {
    "kills": killed,
    "signals": told_to_end,
    "full disk": on_a_full_disk,
    "damage": with_damage,
    "two at once": two_at_once,
}
NEED_WRITES = ("kills", "full disk", "two at once")
