"""How far a long pass is, on stderr: a bar on a terminal, in a pipe one line now and then.

Only the first of several processes shows it, and of passes within passes only the outer one. Nothing is shown of what
takes less than a few seconds in a pipe. Titles are plain text.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

from ftrace.launched_processes import is_first_process
from ftrace.shown_text import plain

T = TypeVar("T")

FIRST_LINE_AFTER = 5.0  # seconds; each further line comes after twice as long as the one before, at most
LINES_EVERY = 60.0

_is_shown = False


class Advance(Protocol):
    """Says that a pass is further."""

    def __call__(self, count: int = 1, /) -> None:
        """Count what has been done since the last call."""


def track(items: Iterable[T], what: str, total: int | None = None, done: int = 0) -> Iterator[T]:
    """Yield items, and show how many have been taken.

    Args:
        items: What a pass goes through.
        what: What is done with it.
        total: How many items there are; default: their length, if they have one.
        done: How many were done before.
    """
    if total is None and isinstance(items, Sized):
        total = done + len(items)
    with progress(what, total, done) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def progress(what: str, total: int | None = None, done: int = 0) -> Iterator[Advance]:
    """Show how far a pass is while a block runs.

    Args:
        what: What is done.
        total: How much there is to do; None if that isn't known.
        done: How much was done before.

    Yields:
        A function that is told what has been done since its last call.
    """
    global _is_shown
    if _is_shown or not is_first_process():
        yield _show_nothing
        return
    _is_shown = True
    try:
        if sys.stderr.isatty():
            with _bar() as bar:
                task = bar.add_task(plain(what), total=total, completed=done)
                yield lambda count=1: bar.advance(task, count)
        else:
            yield _Lines(what, total, done)
    finally:
        _is_shown = False


class _Lines:
    """Lines for a pipe: rarely, and ever more rarely."""

    def __init__(self, what: str, total: int | None, done: int) -> None:
        self._what = plain(what)
        self._total = total
        self._done = done
        self._begun = time.monotonic()
        self._wait = FIRST_LINE_AFTER
        self._next = self._begun + self._wait

    def __call__(self, count: int = 1, /) -> None:
        self._done += count
        now = time.monotonic()
        if now < self._next:
            return
        self._wait = min(2 * self._wait, LINES_EVERY)
        self._next = now + self._wait
        share = f" of {self._total:,} ({self._done / self._total:.0%})" if self._total else ""
        print(f"{self._what}: {self._done:,}{share} after {now - self._begun:,.0f} s", file=sys.stderr, flush=True)


def _show_nothing(count: int = 1, /) -> None:
    pass


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: list[Any] = [
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]  # fmt: skip
    return Progress(*columns, console=Console(stderr=True, markup=False, emoji=False), transient=True)
