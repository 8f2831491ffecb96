"""Parts that run one after another, each in a process of its own, within the time that there is.

A part's process is a fork of one that has imported everything and never touched the GPU: it starts at once, its peak of
memory is its own, and neither a fault of CUDA nor a part that hangs takes the others with it.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal

from rich.console import Console

from gpu_parts.findings import Finding, PartReport, Report, as_line

LAST_LINES = 25  # of a traceback
ENOUGH = 0.3  # of a part's time: with less it isn't begun
FORKED = "forked subprocess"  # in PyTorch's words that CUDA can't be used in a process
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
        seconds: Its share of the time.
        run: What yields its findings.
    """

    name: str
    seconds: float
    run: Callable[[Given], Iterator[Finding]]


def run_parts(parts: list[Part], report: Report, *, device: str, tiny: bool, seconds: float, console: Console) -> None:
    """Run the parts in their order; each has its share of the time, or what is left of the whole."""
    end = time.monotonic() + seconds
    method: StartMethod = "fork"
    for part in parts:
        left = end - time.monotonic()
        of_part = report.parts[part.name] = PartReport()
        if left < ENOUGH * part.seconds:
            of_part.status = "skipped"
            of_part.error = f"{left:.0f} s were left, of {part.seconds:.0f} s that it may take"
        else:
            given = Given(device, tiny, min(left, part.seconds))
            _run(part, of_part, report, given, console, method)
            if FORKED in of_part.error and method == "fork":  # something imported has asked CUDA
                method = "spawn"
                _run(part, of_part, report, given, console, method)
        report.write()
        console.print(f"{part.name}: {of_part.status} after {of_part.seconds:.0f} s", of_part.error, markup=False)


def _run(part: Part, of_part: PartReport, report: Report, given: Given, console: Console, method: StartMethod) -> None:
    context = multiprocessing.get_context(method)
    here, there = context.Pipe(duplex=False)
    process: Any = context.Process(target=_in_process, args=(part, given, there))  # type: ignore[attr-defined]
    process.start()
    there.close()
    try:
        while True:
            if not here.poll(max(0.0, given.left)):
                of_part.status, of_part.error = "stopped", f"its {given.seconds:.0f} s were up"
                break
            found = here.recv()
            if isinstance(found, str):
                of_part.status, of_part.error = ("failed", found) if found else ("done", "")
                break
            of_part.findings[found.name] = found
            of_part.seconds = given.seconds - given.left
            report.write()
            console.print(as_line(part.name, found), soft_wrap=True)
    except EOFError:
        process.join(5)
        of_part.status, of_part.error = "failed", f"its process ended with exit code {process.exitcode}"
    finally:
        of_part.seconds = given.seconds - given.left
        process.join(10 if of_part.status == "done" else 0)
        process.kill()
        process.join()


def _in_process(part: Part, given: Given, there: Connection[Any, Any]) -> None:
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        for finding in part.run(given):
            there.send(finding)
        there.send("")
    except BaseException as error:
        there.send("\n".join("".join(traceback.format_exception(error)).splitlines()[-LAST_LINES:]))
