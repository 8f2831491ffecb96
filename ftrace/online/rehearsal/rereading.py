"""Gradients that are taken from a rehearsal of the batch, since the recording of its real passes can't read them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from weakref import ref

from ftrace.gradients import PerExampleGradients, Projection, Recording, project


class Rereading:
    """The parameters whose gradients are taken from a rehearsal of the current batch.

    Args:
        who: Whose messages these are.

    Attributes:
        names: The parameters.
        reads: The gradients that the last rehearsal has read, by backward pass; empty for sharded weights.
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
        """Count a backward pass, which is expected to go through this recording."""
        self._passes += 1
        self._announced = ref(recording)

    def replace(
        self,
        gradients: PerExampleGradients,
        recording: Recording,
        left: Collection[str],
        projection: Projection | None = None,
    ) -> PerExampleGradients:
        """Take the gradients of these parameters from the rehearsal.

        Args:
            gradients: The gradients that the recording has read.
            left: The parameters that are still covered.
            projection: What the rehearsal's gradients are to be projected with; None if they have the form already.

        Raises:
            ValueError: If the step has run more backward passes than when it was rehearsed.
        """
        if self.reads:
            number = self._passes - 1
            if number >= len(self.reads):
                raise ValueError(
                    f"{self.who}: the training step runs backward pass {number + 1} over a batch, though it ran only "
                    f"{len(self.reads)} over it when it was rehearsed. Let what it does depend on the batch, the "
                    "random state and the module alone"
                )
            gradients = gradients.only(set(gradients.parts) - self.names)
            if recording is self._announced():
                read = self.reads[number].only(self.names)
                read = read if projection is None else project(read, projection)
                gradients = gradients.with_those_of(read, self.names)
        return gradients.only(left)
