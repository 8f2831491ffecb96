"""Momentum that is followed step by step, for each optimizer: its first steps exactly, all others by a ring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ftrace.gradients import PerExampleGradients
from ftrace.online.scoring.accumulator import ScoreAccumulator
from ftrace.online.scoring.contributions import StepTaken
from ftrace.online.scoring.directions import Directions, QueryDirections
from ftrace.online.scoring.first_steps import FirstSteps
from ftrace.online.scoring.momentum import HeldStep, MomentumRing


class ExactMomentum:
    """The steps of a run whose gradients still have an effect through momentum.

    Args:
        sums: Where scores are added up.
        directions: The query gradients.

    Attributes:
        rings: By optimizer, its ring.
        first: By optimizer, its first steps, as long as they are exact.
    """

    def __init__(self, sums: ScoreAccumulator, directions: QueryDirections) -> None:
        self.sums = sums
        self.directions = directions
        self.rings: dict[int, MomentumRing] = {}
        self.first: dict[int, FirstSteps] = {}

    def take(self, step: StepTaken, queries: Sequence[PerExampleGradients], weight: float = 0) -> tuple[Tensor, Tensor]:
        """Take a step, and book what can be booked.

        Args:
            queries: The query gradients, unprojected if there is a projection: one, or two to interpolate between.
            weight: The weight of the second one.

        Returns:
            As :meth:`MomentumRing.add`.
        """
        if step.is_exact:
            return self.first.setdefault(step.optimizer, FirstSteps(self.sums)).add(step, queries, weight)
        ring = self.rings.setdefault(step.optimizer, MomentumRing(self.sums))
        if step.optimizer in self.first:
            self._hand_over(self.first.pop(step.optimizer), ring, queries[0])
        live = ring.live_balances(step.steps, step.balance)
        towards = [self.directions.by_parameter(step, of_time, live) for of_time in queries]
        directions = towards[0]
        if len(towards) > 1:
            directions = _between(towards[0], towards[1], weight, len(queries[0]))
        return ring.add(_held(step, directions))

    def _hand_over(self, first: FirstSteps, ring: MomentumRing, queries: PerExampleGradients) -> None:
        """Hand the first steps to the ring: what they had an effect on so far is booked, what follows isn't."""
        for step in first.taken:
            balances = self.directions.balances[step.optimizer]
            key = min(balances.known)
            given = None if step.given is None else balances.balanced(step.given, key)
            contributions = [balances.balanced(contribution, key) for contribution in step.contributions]
            projected = replace(step, contributions=contributions, given=given, balance=key)
            live = ring.live_balances(step.steps, key)
            directions = self.directions.by_parameter(projected, queries, live)
            ring.add(_held(projected, {key: torch.zeros_like(of_key) for key, of_key in directions.items()}))

    def finish(self) -> None:
        """Book all that is held, since training has ended."""
        for ring in self.rings.values():
            ring.flush()

    def state(self) -> dict[str, Any]:
        """Return all steps that are held."""
        return {
            "rings": {index: ring.state() for index, ring in self.rings.items()},
            "first": {index: first.state() for index, first in self.first.items()},
        }

    def load(self, states: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned.

        Args:
            states: The states of the processes that this one takes over; none, if there are now more processes.
            shared: The state of any process.
        """
        for state in states or [shared]:
            for index, of_ring in state["rings"].items():
                ring = self.rings.setdefault(index, MomentumRing(self.sums))
                ring.add_state(of_ring) if states else ring.load_emptied(of_ring)
            for index, of_first in state["first"].items():
                first = self.first.setdefault(index, FirstSteps(self.sums))
                first.add_state(of_first) if states else first.load_emptied(of_first)


def _between(old: Directions, new: Directions, weight: float, count: int) -> Directions:
    """Interpolate directions; one that is missing is 0, as of an adapter that isn't active.

    Args:
        weight: The weight of the new ones.
        count: The number of queries that had directions before.
    """
    directions = {key: (1 - weight) * of_key for key, of_key in old.items()}
    for key, of_key in new.items():
        rest = directions.get(key)
        directions[key] = weight * of_key[:count] if rest is None else rest + weight * of_key[:count]
    return directions


def _held(step: StepTaken, directions: Directions) -> HeldStep:
    names = {name for _, name in directions}
    scalars = {name: replace(of_step, scale=1.0) for name, of_step in step.steps.items() if name in names}
    return HeldStep(step.moment, step.clip, scalars, directions, step.contributions, step.given, step.balance)
