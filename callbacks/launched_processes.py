"""Processes that Lightning has launched, when one of them fails.

At most five seconds after a process has failed, Lightning kills all others, also one that is writing what there is.
Here, the first process has time to come to its own end: it notices a failure in its next collective. And a process that
hangs at its end, in a collective that no other will come to, is ended by force.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from types import CodeType
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

SECONDS_TO_NOTICE = 60.0  # within which the first process begins to end after another has failed
SECONDS_IN_COLLECTIVE = 8.0  # that a failed process waits for others at most
_POLL = 0.5


def watch_processes(trainer: Trainer) -> None:
    """Watch the processes that a trainer has launched, in the place of Lightning's own thread."""
    for thread in threading.enumerate():
        children = getattr(thread, "_child_processes", None)
        if thread.name == "child-process-observer" and children:
            thread._child_processes = []  # type: ignore[attr-defined]  # it ends when it sees that
            threading.Thread(target=_watch, args=(trainer, children), daemon=True, name="ftrace-processes").start()


def end_processes(trainer: Trainer, exception: BaseException, *, together: bool) -> None:
    """See to it that all processes end, since training has failed in this one.

    Args:
        exception: Why.
        together: Whether all processes end at the same place, where collectives are safe.
    """
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher) and launcher.procs:  # this one trains nothing, but waits for them
        launcher.kill(signal.SIGTERM)
    elif trainer.world_size > 1 and not together:
        threading.Thread(target=_end_by_force, args=(trainer, exception), daemon=True, name="ftrace-end").start()


def _watch(trainer: Trainer, children: list[Any]) -> None:
    while True:
        time.sleep(_POLL)
        codes = [child.poll() for child in children]
        if all(code == 0 for code in codes):
            return
        if any(codes):
            break
    since = time.monotonic()
    while time.monotonic() < since + SECONDS_TO_NOTICE:
        time.sleep(_POLL)
        if trainer.interrupted:
            return
    for process in children:
        process.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def _end_by_force(trainer: Trainer, exception: BaseException) -> None:
    """End this process if it waits for others, which have failed or wait elsewhere, on the way to its end."""
    waited = 0.0
    while waited < SECONDS_IN_COLLECTIVE:
        time.sleep(_POLL)
        codes = _code_of_main_thread()
        if not any(code.co_name == "_call_and_handle_interrupt" for code in codes):
            return
        in_collective = any(code.co_filename.endswith("distributed_c10d.py") for code in codes)
        waited = waited + _POLL if in_collective else 0.0
    traceback.print_exception(exception)
    sys.stderr.flush()
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(signal.SIGKILL)
    os._exit(1)


def _code_of_main_thread() -> list[CodeType]:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    codes = []
    while frame is not None:
        codes.append(frame.f_code)
        frame = frame.f_back
    return codes
