"""Gradients that a rehearsal of the current batch has read, where the recording of its own passes can't."""

from __future__ import annotations

from collections.abc import Callable, Collection
from weakref import ref

from ftrace.gradients import PerExampleGradients, Recording


class Rereading:
    """The parameters of one batch whose gradients are taken from a rehearsal.

    Args:
        who: Whose messages these are.

    Attributes:
        names: The parameters.
        reads: What the last rehearsal has read, by backward pass; empty for sharded weights.
    """

    def __init__(self, who: str) -> None:
        self.who = who
        self.names: set[str] = set()
        self.reads: list[PerExampleGradients] = []
        self._passes = 0  # backward passes over this batch
        self._announced: Callable[[], Recording | None] = lambda: None

    def begin_batch(self) -> None:
        """Forget the previous batch."""
        self.names, self._passes = set(), 0

    def begin_pass(self, recording: Recording) -> None:
        """Count a backward pass, through what this recording has recorded."""
        self._passes += 1
        self._announced = ref(recording)

    def replace(
        self, gradients: PerExampleGradients, recording: Recording, left: Collection[str]
    ) -> PerExampleGradients:
        """Take those parameters' gradients from the rehearsal.

        Args:
            gradients: As the recording has read them.
            recording: The recording.
            left: The parameters that are still covered.

        Raises:
            ValueError: If the step has run other backward passes than when it was rehearsed.
        """
        if self.reads:
            number = self._passes - 1
            if number >= len(self.reads):
                raise ValueError(
                    f"{self.who}: the training step runs backward pass {number + 1} over a batch over which it ran "
                    f"{len(self.reads)} when it was rehearsed. Let what it does depend on the batch, the random state "
                    "and the module alone"
                )
            gradients = gradients.only(set(gradients.parts) - self.names)
            if recording is self._announced():
                gradients = gradients.with_those_of(self.reads[number], self.names)
        return gradients.only(left)
