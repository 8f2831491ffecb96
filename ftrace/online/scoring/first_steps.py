"""An optimizer's first steps, whose effect on each other through momentum is computed without projection.

:mod:`ftrace.online.scoring.balances` says why the first steps are exact. With exact momentum, a gradient has effects on
several steps. Those of the first steps' gradients on the first steps are booked here, with unprojected query gradients.
Their effect on later steps is projected like that of all others, so they are handed to the ring of momentum then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ftrace.gradients import PerExampleGradients
from ftrace.online.scoring.accumulator import ScoreAccumulator
from ftrace.online.scoring.contributions import (
    Contribution,
    StepTaken,
    book_scores,
    interpolated,
    weighted,
)
from ftrace.online.scoring.directions import UpdateSide, scaling_examples
from ftrace.online.scoring.gains import Gains, gain
from ftrace.scores import Sum


class FirstSteps:
    """The first steps of one optimizer, until the ring of momentum takes them over.

    Args:
        sums: Where scores are added up.

    Attributes:
        taken: The steps, with unprojected contributions.
        in_buffer: For each of them, by parameter, the factor with which its gradient is in the optimizer's buffer.
    """

    def __init__(self, sums: ScoreAccumulator) -> None:
        self.sums = sums
        self.taken: list[StepTaken] = []
        self.in_buffer: list[dict[str, float]] = []

    def add(self, step: StepTaken, queries: Sequence[PerExampleGradients], weight: float) -> tuple[Tensor, Tensor]:
        """Book the effect that this step gives to its own and to earlier gradients.

        Args:
            queries: The unprojected query gradients: one, or two between which to interpolate.
            weight: The weight of the second one.

        Returns:
            The decrease of each query's loss, ``[Q]`` float64: as contributions explain it, and as the gradients that
            the optimizer was given do.
        """
        self.taken.append(step)
        self.in_buffer.append({})
        gains = Gains(self.sums)
        for earlier, in_buffer in zip(self.taken, self.in_buffer, strict=True):
            factors = {}
            for name, of_step in step.steps.items():
                if earlier is step:
                    in_buffer[name] = of_step.gain
                elif name in in_buffer:
                    in_buffer[name] *= of_step.decay
                else:
                    continue
                direct = of_step.direct if earlier is step else 0.0
                factors[name] = earlier.clip * (direct + of_step.from_buffer * in_buffer[name])
            sides = [scaling_examples(of_time, step, factors) for of_time in queries]
            for contribution in earlier.contributions:
                scores = _scores(contribution, sides, weight)
                book_scores(self.sums, contribution.example_ids, scores, earlier.moment)
                gains.add(gain(scores))
            if earlier.given is not None:
                gains.add(by_given=gain(_scores(earlier.given, sides, weight)))
        return gains.take()

    def state(self) -> dict[str, Any]:
        """Return the steps."""
        return {"taken": list(self.taken), "in_buffer": [dict(factors) for factors in self.in_buffer]}

    def add_state(self, state: Mapping[str, Any]) -> None:
        """Add the state of one process; another process's contributions are added to the same steps."""
        if not self.taken:
            self.taken, self.in_buffer = list(state["taken"]), list(state["in_buffer"])
            return
        for step, other in zip(self.taken, state["taken"], strict=True):
            step.contributions += other.contributions

    def load_emptied(self, state: Mapping[str, Any]) -> None:
        """Load another process's steps without its contributions."""
        self.taken, self.in_buffer = [step.emptied() for step in state["taken"]], list(state["in_buffer"])


def _scores(contribution: Contribution, sides: Sequence[UpdateSide], weight: float) -> dict[Sum, Tensor]:
    at_times = []
    for side in sides:
        products = side.multiply(contribution.for_update, contribution.shares, contribution.factor)
        at_times.append(weighted("update", products, dict.fromkeys(products, 1.0)))
    return at_times[0] if len(at_times) == 1 else interpolated(at_times[0], at_times[1], weight)
