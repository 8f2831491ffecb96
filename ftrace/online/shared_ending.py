"""The end of a training by several processes, for each observer of it: together if they can, else each one alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ftrace.online.loop import TrainingLoop
from ftrace.online.processes import gather_objects, num_processes
from ftrace.online.signals import TrainingSignals


class SharedEnding:
    """How a training ends by a signal or an error, as one of its observers sees it.

    Attributes:
        is_alone: Whether this process ends at a place where others may be gone, or wait elsewhere.
    """

    def __init__(self) -> None:
        self.is_alone = False
        self._signals: TrainingSignals | None = None

    def signals_begin(self, loop: TrainingLoop) -> None:
        """Let signals end all processes of the training together, from here on."""
        if self._signals is None:
            self._signals = TrainingSignals.begin(loop)

    def training_begins(self, loop: TrainingLoop) -> None:
        """Handle signals, and forget how an earlier training has ended."""
        self.is_alone = False
        self.signals_begin(loop)

    def stop_together(self) -> None:
        """Stop, if a process has noted a signal. All processes must call it.

        Raises:
            BaseException: What ends training by the signal.
        """
        if self._signals is not None:
            self._signals.stop_together()

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Let nothing but a second signal interrupt the block, which writes what there is; then wait for the others."""
        signals = self._signals
        self.is_alone = num_processes() > 1 and (signals is None or not signals.stopped_together)
        if signals is not None:
            signals.ending_begins()
        yield
        if not self.is_alone:
            gather_objects(None)  # a barrier: when one process is gone, those that are left are killed

    def restore(self) -> None:
        """Put back the handlers of signals that were there before."""
        if self._signals is not None:
            self._signals.restore()
            self._signals = None
