"""Parts that run one after another, each in a process of its own, within the time that there is.

All processes begin at once, import what they need and wait for their turn; only then do they touch the GPU. So a part's
peak of memory is its own, and neither a fault of CUDA nor a part that hangs takes the others with it.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console

from gpu_parts.findings import Finding, PartReport, Report, as_line

LAST_LINES = 25  # of a traceback
ENOUGH = 0.3  # of a part's time: with less it isn't begun
StartMethod = Literal["fork", "spawn"]


@dataclass(frozen=True)
class Given:
    """What a part is given.

    Args:
        device: "cuda" or "cpu".
        tiny: Whether to rehearse with small sizes: figures mean nothing.
        seconds: How long it may take; then it is stopped.
        started: When it began, by ``time.monotonic()``.
    """

    device: str
    tiny: bool
    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.started)


@dataclass(frozen=True)
class Part:
    """A part of the run.

    Args:
        name: As the command line has it.
        seconds: How long it should have; where there is less time in all, or more is left, its share of that.
        run: What yields its findings; a function of a module, which another process can import.
    """

    name: str
    seconds: float
    run: Callable[[Given], Iterator[Finding]]


def run_parts(
    parts: list[Part],
    report: Report,
    *,
    device: str,
    tiny: bool,
    seconds: float,
    console: Console,
    method: StartMethod = "spawn",
) -> None:
    """Run the parts in their order; each has its share of the time that is left.

    Args:
        seconds: Of all parts.
        method: How processes begin. A process that was forked can't use CUDA if anything that its parent imported has.
    """
    end = time.monotonic() + seconds
    waiting = [_Process(part, method) for part in parts]
    try:
        for place, (part, process) in enumerate(zip(parts, waiting, strict=True)):
            process.wait_for_imports(end - time.monotonic())
            share = part.seconds / sum(other.seconds for other in parts[place:])
            of_part, allotted = PartReport(), share * (end - time.monotonic())
            report.parts[part.name] = of_part
            if allotted < ENOUGH * part.seconds:
                of_part.status = "skipped"
                of_part.error = f"{allotted:.0f} s were left for it, of the {part.seconds:.0f} s that it should have"
            else:
                for found in process.findings(Given(device, tiny, allotted), of_part):
                    report.write()
                    console.print(as_line(part.name, found), soft_wrap=True)
            report.write()
            console.print(f"{part.name}: {of_part.status} after {of_part.seconds:.0f} s {of_part.error}")
    finally:
        for process in waiting:
            process.kill()


class _Process:
    """A part's process, which waits until it is given its task.

    Args:
        part: The part.
        method: How it begins.
    """

    def __init__(self, part: Part, method: StartMethod) -> None:
        context: Any = multiprocessing.get_context(method)
        self._here, there = context.Pipe()
        self._process = context.Process(target=_in_process, args=(part, there), daemon=True)
        self._process.start()
        there.close()

    def wait_for_imports(self, seconds: float) -> None:
        """Wait until it has imported what it needs, or has failed to, so that this isn't counted as the part's time."""
        if self._here.poll(max(0.0, seconds)):
            with suppress(EOFError):
                self._here.recv()

    def findings(self, given: Given, of_part: PartReport) -> Iterator[Finding]:
        """Let the part run; yields what it finds, and notes it and how it ends in its report."""
        try:
            self._here.send(given)
            while True:
                if not self._here.poll(max(0.0, given.left)):
                    of_part.status, of_part.error = "stopped", f"its {given.seconds:.0f} s were up"
                    break
                found = self._here.recv()
                of_part.seconds = given.seconds - given.left
                if isinstance(found, str):
                    of_part.status, of_part.error = ("failed", found) if found else ("done", "")
                    break
                of_part.findings[found.name] = found
                yield found
        except (EOFError, OSError):
            self._process.join(5)
            of_part.status, of_part.error = "failed", f"its process ended with exit code {self._process.exitcode}"
        of_part.seconds = given.seconds - given.left
        self._process.join(10 if of_part.status == "done" else 0)
        self.kill()

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def _in_process(part: Part, there: Any) -> None:
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        there.send("imported")
        given = there.recv()
    except (EOFError, OSError):  # the run has ended before
        return
    try:
        for finding in part.run(given):
            there.send(finding)
        there.send("")
    except BaseException as error:
        there.send("\n".join("".join(traceback.format_exception(error)).splitlines()[-LAST_LINES:]))
