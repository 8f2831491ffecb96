"""When a training step is rehearsed, and when it is only confirmed that rows are still where they were."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch
from torch.autograd.graph import Node

from ftrace.gradients import kind_of_graph

_CONFIRM_OFTEN_UNTIL = 5  # so at steps 1, 3 and 7: two forward passes are less than one step
_CONFIRM_EVERY = 100  # steps, at first
_CHECK_EVERY = 800  # a whole check costs some seven steps
_EVERY_STEP_UNTIL, _LATER_EVERY = 100, 10  # steps whose graph is compared with those before
_MOST_GRAPHS, _GRAPHS_EVERY = 10, 100  # confirmations where the graph differs: so many, and one more in so many steps


class Due(Enum):
    """What is due before a training step."""

    NOTHING = 0
    CONFIRMATION = 1
    REHEARSAL = 2


class RehearsalSchedule:
    """The schedule of one run, which is the same on all processes.

    Args:
        seed: Of the steps that are chosen at random.

    Attributes:
        is_due: Whether the next batch of several examples must be rehearsed, whatever the step.
    """

    def __init__(self, seed: int) -> None:
        self.is_due = True
        self._generator = torch.Generator().manual_seed(seed)
        self._next_confirmation = 1
        self._next_check = self._within(_CHECK_EVERY)
        self._graphs: set[int] = set()
        self._others_confirmed = 0

    def _within(self, every: int, after: int = 0) -> int:
        return after + every + int(torch.randint(every, (), generator=self._generator))

    def at(self, step: int, *, checks: bool) -> Due:
        """Say what is due by the count of steps.

        Args:
            step: The optimizer step that is next.
            checks: Whether gradients are checked.
        """
        if checks and step >= self._next_check:
            self._next_check = self._within(_CHECK_EVERY, step + step // 2)
            self._next_confirmation = max(self._next_confirmation, step + _CONFIRM_EVERY)
            return Due.REHEARSAL
        if step >= self._next_confirmation:
            is_early = step < _CONFIRM_OFTEN_UNTIL
            self._next_confirmation = 2 * step + 1 if is_early else self._within(_CONFIRM_EVERY, step + step // 2)
            return Due.CONFIRMATION
        return Due.NOTHING

    def is_another_graph(self, starts: Sequence[Node], step: int) -> bool:
        """Whether autograd's graph is of a kind that was not confirmed yet.

        Where it always is, only some are reported.

        Args:
            starts: Where the backward pass begins.
            step: The optimizer step.
        """
        if step >= _EVERY_STEP_UNTIL and step % _LATER_EVERY:
            return False
        kind = kind_of_graph(starts)
        if kind in self._graphs:
            return False
        self._graphs.add(kind)
        if len(self._graphs) == 1 or self._others_confirmed > _MOST_GRAPHS + step // _GRAPHS_EVERY:
            return False
        self._others_confirmed += 1
        return True

    def draw(self) -> int:
        """Draw a number, for a random choice that all processes make alike."""
        return int(torch.randint(2**31, (), generator=self._generator))
