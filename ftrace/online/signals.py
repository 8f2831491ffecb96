"""Signals that end a training by several processes: all of them stop before the same batch.

A signal reaches each process at another moment, or only one of them. Were each to stop where it is, the others would
wait for it in a collective, or take its next message for another one. So a signal is only noted. Before each batch the
processes tell each other what they have noted, and then stop together; what is saved at an exception, such as a
checkpoint, may still be a collective.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from ftrace.online.loop import TrainingLoop
from ftrace.online.processes import collective_device, num_processes

SECONDS_TO_NEXT_BATCH = 10.0  # after which a process stops where it is


class TrainingSignals:
    """The handlers of SIGTERM and SIGINT while a model is trained.

    A second signal stops this process at once: before the ending where it is, and during the ending for good. A process
    that writes what there is after the end of others isn't stopped by one signal alone, which whoever started the
    processes sends to those that are left.

    Args:
        loop: The training loop, which knows what a signal does without this.

    Attributes:
        stopped_together: Whether all processes have stopped before the same batch.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self.stopped_together = False
        self._loop = loop
        self._observers = 0
        self._noted = 0
        self._is_ending = False
        self._before: dict[int, Any] = {}
        self._handlers: dict[int, Sequence[Any]] = {}
        self._pid = os.getpid()
        self._deadline: threading.Timer | None = None

    @staticmethod
    def begin(loop: TrainingLoop) -> TrainingSignals:
        """Handle signals from here on; several observers of one training share the handlers of the first."""
        shared = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        signals = shared if isinstance(shared, TrainingSignals) and not shared._is_ending else TrainingSignals(loop)
        signals._observers += 1
        if signals is not shared and threading.current_thread() is threading.main_thread():  # no other may set handlers
            signals._install()
        return signals

    def _install(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            handlers = self._loop.handlers_of_signal(signum)
            if handlers is not None and signal.getsignal(signum) not in (signal.SIG_IGN, None):
                self._handlers[signum] = handlers
                self._before[signum] = signal.signal(signum, self._handle)

    def restore(self) -> None:
        """Put back the handlers that were there before, if no other observer needs these."""
        self._observers -= 1
        if self._observers:
            return
        self._cancel_deadline()
        for signum, before in self._before.items():
            if getattr(signal.getsignal(signum), "__self__", None) is self:
                signal.signal(signum, before)

    def stop_together(self) -> None:
        """Stop, if a process has noted a signal. All processes must call it.

        Raises:
            BaseException: What ends training by the signal.
        """
        noted = self._noted
        if num_processes() > 1:
            of_all = torch.tensor(noted, device=collective_device())
            dist.all_reduce(of_all, op=dist.ReduceOp.MAX)
            noted = int(of_all)
        if noted:
            self.stopped_together = True
            self._stop_by(noted)

    def ending_begins(self) -> None:
        """Let nothing but a second signal interrupt what is written from here on."""
        self._cancel_deadline()
        self._is_ending = True

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid or (self._is_ending and self._noted):
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        elif self._is_ending or not self._noted:
            self._noted = signum
            if not self._is_ending:
                self._deadline = threading.Timer(SECONDS_TO_NEXT_BATCH, _thread.interrupt_main, (signum,))
                self._deadline.daemon = True
                self._deadline.start()
        else:
            self._stop_by(signum)

    def _stop_by(self, signum: int) -> None:
        self.ending_begins()
        for handler in self._handlers.get(signum, ()):
            if callable(handler):
                handler(signum, None)
        raise self._loop.end_by_signal(signum)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
