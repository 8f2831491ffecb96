"""The schedule of an index: which optimizer steps are written, and where segments begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ftrace.arguments import Count, Positive, checked


@checked
@dataclass(frozen=True)
class SegmentSchedule:
    """The steps to write, and the steps at which new segments begin.

    Args:
        epochs: The epochs to write; default: all.
        steps: Ranges ``[first, last]`` of optimizer steps to write instead, the last one included.
        segment_steps: The number of steps after which a new segment begins; default: one segment for each epoch or
            range.

    Raises:
        ValueError: If both epochs and steps are given, or a number is out of range.

    Example:
        >>> schedule = SegmentSchedule(epochs=[0, 1])
        >>> [schedule.part(step, epoch) for step, epoch in ((0, 0), (9, 1), (18, 2))]
        [('epoch', 0), ('epoch', 1), None]
        >>> schedule.continues((0, 0), step=5, epoch=0), schedule.continues((0, 0), step=9, epoch=1)
        (True, False)
    """

    epochs: Sequence[Count] | None = None
    steps: Sequence[Sequence[Count]] | None = None
    segment_steps: Positive | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("expected one of epochs and steps, found both")
        if self.epochs is not None and not len(self.epochs):
            raise ValueError(f"epochs: expected epochs from 0 on, found {list(self.epochs)}")
        if self.steps is not None and (
            not self.steps or any(len(ends) != 2 or ends[1] < ends[0] for ends in self.steps)
        ):
            raise ValueError(f"steps: expected ranges [first, last] of steps from 0 on, found {list(self.steps)}")

    def part(self, step: int, epoch: int) -> tuple[str, int] | None:
        """Return the part of the run, such as an epoch, that a segment with this step lies within; None: not written.

        Args:
            step: The optimizer step.
            epoch: The epoch of this step.
        """
        if self.steps is not None:
            ranges = enumerate(self.steps)
            index = next((index for index, (first, last) in ranges if first <= step <= last), None)
            return None if index is None else ("range", index)
        if self.epochs is not None and epoch not in self.epochs:
            return None
        return ("run", 0) if self.segment_steps is not None and self.epochs is None else ("epoch", epoch)

    def continues(self, began: tuple[int, int], step: int, epoch: int) -> bool:
        """Tell whether a segment also contains this step.

        Args:
            began: The step and epoch at which the segment began.
            step: The optimizer step.
            epoch: The epoch of this step.
        """
        part = self.part(step, epoch)
        if part is None or self.part(*began) != part:
            return False
        return self.segment_steps is None or step - began[0] < self.segment_steps
