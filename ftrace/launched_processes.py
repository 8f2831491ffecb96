"""Processes that Lightning has launched, and the end of all of them when one fails or a signal comes.

At most five seconds after a process has failed, Lightning kills all others, also one that is writing what there is. Its
handler of SIGTERM runs a collective, which hangs if the others are in another one. Here, the first process comes to its
own end, and the others are ended by it. A process that waits at its end for others that won't come is ended by force.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import Any

SECONDS_TO_NOTICE = 60.0  # within which the first process begins to end after another has failed
SECONDS_IN_COLLECTIVE = 8.0  # that a failed process waits for others at most
SECONDS_TO_END = 5.0  # of processes that were told to
_POLL = 0.5
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "NCCL")  # what collectives say when a process is gone
_OF_SIGNALS = {-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM}


def is_first_process() -> bool:
    """Tell whether this is the first process of a run, by torch if it has begun, or else by what launched it."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return bool(distributed.get_rank() == 0)
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def watch_processes(trainer: Any, *, interrupt: bool = False) -> None:
    """Watch the processes that a trainer has launched, in the place of Lightning's own thread.

    Args:
        trainer: A Lightning Trainer whose processes are running.
        interrupt: Whether to interrupt this process when one of them fails, since it has no collective for long.
    """
    for thread in threading.enumerate():
        children = getattr(thread, "_child_processes", None)
        if thread.name == "child-process-observer" and children:
            thread._child_processes = []  # type: ignore[attr-defined]  # it ends when it sees that
            given = (trainer, children, interrupt)
            threading.Thread(target=_watch, args=given, daemon=True, name="ftrace-processes").start()


def handlers_without_lightning(trainer: Any, signum: int) -> list[Any]:
    """Return what a signal calls beside Lightning's own handlers."""
    handler = signal.getsignal(signum)
    connector = getattr(trainer, "_signal_connector", None)
    handlers = getattr(handler, "signal_handlers", [handler])
    return [each for each in handlers if getattr(each, "__self__", None) is not connector]


def interrupt_at_once(trainer: Any) -> None:
    """Let SIGTERM interrupt a pass of several processes where it is, until the trainer puts back earlier handlers.

    For passes whose processes don't wait for each other, and whose work is kept piece by piece.
    """
    if trainer.world_size == 1 or threading.current_thread() is not threading.main_thread():
        return
    handlers = handlers_without_lightning(trainer, signal.SIGTERM)

    def handle(signum: int, frame: Any) -> None:
        for each in handlers:
            if callable(each):
                each(signum, frame)
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, handle)
    watch_processes(trainer, interrupt=True)


@contextmanager
def ending_launched(trainer: Any) -> Iterator[None]:
    """End the processes that a trainer has launched if the block raises.

    Raises:
        ChildProcessError: If the block's error comes from the failure of another process.
    """
    try:
        yield
    except BaseException as error:
        processes = list(getattr(trainer.strategy.launcher, "procs", ()))
        time.sleep(_POLL if processes and isinstance(error, RuntimeError) else 0)  # for a failed one to be gone
        failed = [code for code in map(_exit_code, processes) if code]
        _end(processes)
        if failed and isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST):
            if failed[0] in _OF_SIGNALS:
                signal.raise_signal(signal.SIGTERM)
            raise ChildProcessError(
                f"a process of this command has ended with exit code {failed[0]}; its message stands above"
            ) from error
        raise


def end_failed_training(trainer: Any, exception: BaseException, *, together: bool) -> None:
    """See to it that all processes of a training end, since it has failed in this one.

    Args:
        trainer: A Lightning Trainer.
        exception: Why.
        together: Whether all processes end at the same place, where collectives are safe.
    """
    launcher = trainer.strategy.launcher
    if getattr(launcher, "procs", ()) and hasattr(launcher, "_start_method"):  # it waits for those that train
        launcher.kill(signal.SIGTERM)
    elif trainer.world_size > 1 and not together:
        threading.Thread(target=_end_by_force, args=(trainer, exception), daemon=True, name="ftrace-end").start()


def _watch(trainer: Any, children: list[Any], interrupt: bool) -> None:
    while True:
        time.sleep(_POLL)
        codes = list(map(_exit_code, children))
        if all(code == 0 for code in codes):
            return
        if any(codes):
            break
    if interrupt:
        time.sleep(_POLL)  # its message comes first
        _thread.interrupt_main(signal.SIGTERM)
    since = time.monotonic()
    while time.monotonic() < since + SECONDS_TO_NOTICE:
        time.sleep(_POLL)
        if trainer.interrupted:
            return
    for process in children:
        process.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def _end_by_force(trainer: Any, exception: BaseException) -> None:
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
    for process in getattr(trainer.strategy.launcher, "procs", ()):
        process.kill()
    os._exit(1)


def _code_of_main_thread() -> list[CodeType]:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    codes = []
    while frame is not None:
        codes.append(frame.f_code)
        frame = frame.f_back
    return codes


def _exit_code(process: Any) -> int | None:
    """Return the exit code of a process that was started by subprocess or multiprocessing; None while it runs."""
    code: int | None = process.poll() if hasattr(process, "poll") else process.exitcode
    return code


def _end(processes: Sequence[Any]) -> None:
    """Tell processes to end, and wait for them; those that don't are killed."""
    for process in processes:
        if _exit_code(process) is None:
            process.terminate()
    deadline = time.monotonic() + SECONDS_TO_END
    while any(_exit_code(process) is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in processes:
        if _exit_code(process) is None:
            process.kill()
