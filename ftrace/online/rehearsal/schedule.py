"""The schedule of rehearsals, and of the cheaper confirmations that rows are still where they were."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch
from torch.autograd.graph import Node

from ftrace.gradients import kind_of_graph

_CONFIRM_OFTEN_UNTIL = 5  # so at steps 1, 3 and 7; a confirmation takes two forward passes, less than one step
_CONFIRM_EVERY = 100  # steps between later confirmations, at first
_CHECK_EVERY = 800  # steps between rehearsals, at first; a rehearsal takes the time of some seven steps
_EVERY_STEP_UNTIL, _LATER_EVERY = 100, 10  # graphs are compared at every step until 100, later at every tenth one
_MOST_GRAPHS, _GRAPHS_EVERY = 10, 100  # at most 10 confirmations because of new graphs, and one more per 100 steps


class Due(Enum):
    """Kinds of what is due before a training step."""

    NOTHING = 0
    CONFIRMATION = 1
    REHEARSAL = 2


class RehearsalSchedule:
    """The schedule of one run, the same on all processes.

    Args:
        seed: For the steps that are chosen at random.

    Attributes:
        is_due: Whether the next batch of several examples must be rehearsed at any step.
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
        """Return what is due before a step.

        Args:
            step: The next optimizer step.
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
        """Whether autograd's graph is of a new kind, for which rows must be confirmed.

        If the graph is new at almost every step, this is limited to some of the steps.

        Args:
            starts: The nodes at which the backward pass begins.
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
        """Draw a number, the same on all processes, for a random choice."""
        return int(torch.randint(2**31, (), generator=self._generator))
