"""Exact attribution of momentum to the examples that it came from, by a ring of past contributions and directions.

A step's own examples make up only ``1 - beta1`` of Adam's step; the rest comes from older gradients. The effect of the
gradient of step s on all later steps is, in the notation of :mod:`ftrace.gradients.optimizer_steps`, one product with

    direct_s Y_s + gain_s E_s,    Y_t = scale_t G_t,    E_t = from_buffer_t Y_t + decay_{t+1} E_{t+1}

where ``G_t`` are the query gradients at step t. So contributions and directions are held for a while, the recursion
runs backward in time, and each contribution is multiplied once. The effect that remains after the ring's horizon is
computed with the last direction held; when training has ended, no effect remains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ftrace.gradients import Dense, ParameterStep, PerExampleGradients, QueryGradients, flat_rows
from ftrace.online.scoring.accumulator import ScoreAccumulator
from ftrace.online.scoring.contributions import Contribution, Moment, book_scores, multiply, padded, weighted

REMAINDER = 0.01  # fraction of a gradient's effect that may remain after the horizon


@dataclass
class HeldStep:
    """A step that is held in the ring.

    Args:
        moment: The time of the step.
        clip: The clip factor kappa.
        steps: By parameter, what the step did with it; its scale is in ``directions`` already.
        directions: By parameter, ``Y``, ``[Q, *shape]``.
        contributions: All contributions to the gradients that the step used.
        given: The gradient that the optimizer was given, as one example's contribution, projected; None if nothing is
            projected.
    """

    moment: Moment
    clip: float
    steps: dict[str, ParameterStep]
    directions: dict[str, Tensor]
    contributions: list[Contribution]
    given: Contribution | None = None

    def emptied(self) -> HeldStep:
        """Drop the contributions."""
        self.contributions = []
        return self


class MomentumRing:
    """The steps of one optimizer whose gradients still have an effect through momentum.

    Args:
        sums: Where scores are added up.

    Attributes:
        held: The steps, from the oldest to the latest.
        buffers: By parameter, the part of the optimizer's momentum buffer that comes from contributions.
        given_buffers: By parameter, the same from the gradients that the optimizer was given.
    """

    def __init__(self, sums: ScoreAccumulator) -> None:
        self.sums = sums
        self.held: list[HeldStep] = []
        self.buffers: dict[str, Tensor] = {}
        self.given_buffers: dict[str, Tensor] = {}

    @property
    def horizon(self) -> int:
        """The number of steps after which 1% of a gradient's effect remains, for the slowest parameter."""
        decays = [step.decay for held in self.held[-1:] for step in held.steps.values() if step.decay]
        slowest = min(max(decays, default=0.0), 1 - 1e-6)
        return max(1, math.ceil(math.log(REMAINDER) / math.log(slowest))) if slowest else 1

    def add(self, held: HeldStep) -> tuple[Tensor, Tensor]:
        """Add a step that was taken; book the oldest ones once the ring is full.

        Returns:
            The decrease of each query's loss by this step, ``[Q]`` float64: as the contributions of its examples and of
            earlier ones explain it, and as the gradients that the optimizer was given do.
        """
        gained = self._gained(held, held.contributions, self.buffers)
        given = self._gained(held, [] if held.given is None else [held.given], self.given_buffers)
        held.given = None
        self.held.append(held)
        horizon = self.horizon
        if len(self.held) >= horizon + max(1, horizon // 2):
            self.flush(len(self.held) - horizon)
        return gained, given

    def _gained(self, held: HeldStep, contributions: Sequence[Contribution], buffers: dict[str, Tensor]) -> Tensor:
        total = torch.zeros(len(self.sums.query_ids), dtype=torch.float64)
        for name, step in held.steps.items():
            direction = flat_rows(held.directions[name])
            current = held.clip * total_contribution(contributions, name)
            if not isinstance(current, Tensor) and name not in buffers:
                continue
            buffer = step.gain * current + (step.decay * buffers[name] if name in buffers else 0)
            buffers[name] = buffer
            moved = (step.direct * current + step.from_buffer * buffer).flatten().to(direction)
            total[: len(direction)] += (direction @ moved).double().cpu()
        return total

    def flush(self, count: int | None = None) -> None:
        """Book the oldest steps.

        Args:
            count: The number of steps; default: all, since training has ended and no step will follow.
        """
        last = count is None
        count = len(self.held) if count is None else count
        effect: dict[str, Tensor] = {}  # decay_{t+1} E_{t+1}
        seen: set[str] = set()
        for index in reversed(range(len(self.held))):
            held = self.held[index]
            towards: dict[str, Tensor] = {}
            for name, step in held.steps.items():
                direction = padded(held.directions[name], len(self.sums.query_ids))
                rest = effect.get(name)
                if name not in seen and not last and step.decay < 1:
                    rest = direction * (step.from_buffer * step.decay / (1 - step.decay))
                seen.add(name)
                via_buffer = direction * step.from_buffer if rest is None else direction * step.from_buffer + rest
                if index < count:
                    towards[name] = direction * step.direct + via_buffer * step.gain
                effect[name] = via_buffer * step.decay
            if index < count:
                self._book(held, towards)
        del self.held[:count]

    def state(self) -> dict[str, Any]:
        """Return all that the ring holds."""
        return {"held": list(self.held), "buffers": dict(self.buffers), "given_buffers": dict(self.given_buffers)}

    def add_state(self, state: Mapping[str, Any]) -> None:
        """Add the state of one process; another process's contributions are added to the same steps."""
        if not self.held:
            self.held = list(state["held"])
            self.buffers, self.given_buffers = state["buffers"], state["given_buffers"]
            return
        for step, other in zip(self.held, state["held"], strict=True):
            step.contributions += other.contributions
        for name, buffer in state["buffers"].items():
            self.buffers[name] = self.buffers.get(name, 0) + buffer

    def load_emptied(self, state: Mapping[str, Any]) -> None:
        """Load another process's steps without its contributions."""
        self.held = [step.emptied() for step in state["held"]]
        self.given_buffers = state["given_buffers"]

    def _book(self, held: HeldStep, towards: Mapping[str, Tensor]) -> None:
        if not towards:
            return
        directions = as_queries(towards)
        for contribution in held.contributions:
            assert contribution.gradients is not None
            shares = {share: [n for n in names if n in towards] for share, names in contribution.shares.items()}
            products, _ = multiply(contribution.gradients, directions, shares, contribution.factor, norms=False)
            scores = weighted("update", products, dict.fromkeys(products, held.clip))
            book_scores(self.sums, contribution.example_ids, scores, held.moment)


def as_queries(dense: Mapping[str, Tensor]) -> QueryGradients:
    """Make the query side of products from dense directions, ``[Q, *shape]`` by parameter."""
    first = next(iter(dense.values()))
    shapes = {name: torch.Size(values.shape[1:]) for name, values in dense.items()}
    return QueryGradients(PerExampleGradients({n: [Dense(v)] for n, v in dense.items()}, shapes, len(first)))


def total_contribution(contributions: Sequence[Contribution], name: str) -> Any:
    """Sum all examples' contributions to one parameter's gradient, factor included; 0 if there are none."""
    total: Any = 0
    for contribution in contributions:
        if contribution.gradients is not None and name in contribution.gradients.parts:
            total = total + contribution.factor * contribution.gradients.total(name)
    return total
