"""Which optimizer steps an index is written of, and where its segments begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SegmentSchedule:
    """When to write, and when to begin a new segment.

    Args:
        epochs: Which epochs; default: all.
        steps: Ranges ``[first, last]`` of optimizer steps instead, the last one included.
        segment_steps: Begin a new segment after so many steps; default: with each epoch, and each range.

    Raises:
        ValueError: If both epochs and steps are given, or a number is out of range.

    Example:
        >>> schedule = SegmentSchedule(epochs=[0, 1])
        >>> [schedule.part(step, epoch) for step, epoch in ((0, 0), (9, 1), (18, 2))]
        [('epoch', 0), ('epoch', 1), None]
        >>> schedule.goes_on((0, 0), step=5, epoch=0), schedule.goes_on((0, 0), step=9, epoch=1)
        (True, False)
    """

    epochs: Sequence[int] | None = None
    steps: Sequence[Sequence[int]] | None = None
    segment_steps: int | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("expected one of epochs and steps, found both")
        if self.epochs is not None and (not self.epochs or min(self.epochs) < 0):
            raise ValueError(f"epochs: expected epochs from 0 on, found {list(self.epochs)}")
        if self.steps is not None and (
            not self.steps or any(len(one) != 2 or one[0] < 0 or one[1] < one[0] for one in self.steps)
        ):
            raise ValueError(f"steps: expected ranges [first, last] of steps from 0 on, found {list(self.steps)}")
        if self.segment_steps is not None and self.segment_steps < 1:
            raise ValueError(f"segment_steps: expected at least 1, found {self.segment_steps}")

    def part(self, step: int, epoch: int) -> tuple[str, int] | None:
        """What a segment that holds this step must not reach beyond; None where nothing is written."""
        if self.steps is not None:
            ranges = enumerate(self.steps)
            found = next((place for place, (first, last) in ranges if first <= step <= last), None)
            return None if found is None else ("range", found)
        if self.epochs is not None and epoch not in self.epochs:
            return None
        return ("run", 0) if self.segment_steps is not None and self.epochs is None else ("epoch", epoch)

    def goes_on(self, began: tuple[int, int], step: int, epoch: int) -> bool:
        """Whether a segment that began at some step and epoch holds this step, too."""
        part = self.part(step, epoch)
        if part is None or self.part(*began) != part:
            return False
        return self.segment_steps is None or step - began[0] < self.segment_steps
