"""Momentum given to the examples that it came from, exactly: a ring of past contributions and query directions.

The step's own examples make only ``1 - beta1`` of Adam's step; the rest is older gradients'. What a gradient moves in
all later steps is, with the notation of :mod:`ftrace.gradients.optimizer_steps`, one product with

    direct_s Y_s + gain_s E_s,    Y_t = scale_t G_t,    E_t = from_buffer_t Y_t + decay_{t+1} E_{t+1}

where ``G_t`` are the query gradients at step t. So contributions and directions are held for a while, the recursion is
run backward in time, and each contribution is multiplied once. What is left after the ring's horizon is given to its
examples with the last direction held; at the end of training nothing is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ftrace.gradients import Dense, ParameterStep, PerExampleGradients, QueryGradients, flat_rows
from ftrace.online.scoring.contributions import Contribution, Moment, book, multiply, padded, weighted
from ftrace.scores import ScoreAccumulator

REMAINDER = 0.01  # of a gradient's effect may be left after the horizon


@dataclass
class HeldStep:
    """A step that is still in the ring.

    Args:
        moment: When it was taken.
        clip: kappa.
        steps: By parameter; their scales are in the directions already.
        directions: ``Y``: by parameter, ``[Q, *shape]``.
        contributions: What it was made of.
        given: The true gradient, as one example's, projected; None where nothing is projected.
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
    """The steps of one optimizer whose effect isn't over.

    Args:
        sums: Where scores go.
    """

    def __init__(self, sums: ScoreAccumulator) -> None:
        self.sums = sums
        self.held: list[HeldStep] = []
        self.buffers: dict[str, Tensor] = {}  # of contributions, as the optimizer's of gradients
        self.given_buffers: dict[str, Tensor] = {}

    @property
    def horizon(self) -> int:
        """Steps after which 1% of a gradient's effect is left, by the slowest parameter."""
        decays = [step.decay for held in self.held[-1:] for step in held.steps.values() if step.decay]
        slowest = min(max(decays, default=0.0), 1 - 1e-6)
        return max(1, math.ceil(math.log(REMAINDER) / math.log(slowest))) if slowest else 1

    def add(self, held: HeldStep) -> tuple[Tensor, Tensor]:
        """Add a step that was taken; book the oldest ones once the ring is full.

        Returns:
            What the step's examples and those before have gained by it, ``[Q]`` float64, and what the optimizer's own
            gradients have.
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
            now = held.clip * total_contribution(contributions, name)
            if not isinstance(now, Tensor) and name not in buffers:
                continue
            buffer = step.gain * now + (step.decay * buffers[name] if name in buffers else 0)
            buffers[name] = buffer
            moved = (step.direct * now + step.from_buffer * buffer).flatten().to(direction)
            total[: len(direction)] += (direction @ moved).double().cpu()
        return total

    def flush(self, count: int | None = None) -> None:
        """Book the oldest steps.

        Args:
            count: How many; default: all, since training has ended and no step is going to follow.
        """
        last = count is None
        count = len(self.held) if count is None else count
        effect: dict[str, Tensor] = {}  # what a later step's decay leaves of E, ready to be added
        seen: set[str] = set()
        for index in reversed(range(len(self.held))):
            held = self.held[index]
            towards: dict[str, Tensor] = {}
            for name, step in held.steps.items():
                own = padded(held.directions[name], len(self.sums.query_ids))
                rest = effect.get(name)
                if name not in seen and not last and step.decay < 1:
                    rest = own * (step.from_buffer * step.decay / (1 - step.decay))
                seen.add(name)
                after = own * step.from_buffer if rest is None else own * step.from_buffer + rest
                if index < count:
                    towards[name] = own * step.direct + after * step.gain
                effect[name] = after * step.decay
            if index < count:
                self._book(held, towards)
        del self.held[:count]

    def state(self) -> dict[str, Any]:
        """Return all that the ring holds."""
        return {"held": list(self.held), "buffers": dict(self.buffers), "given_buffers": dict(self.given_buffers)}

    def add_state(self, state: Mapping[str, Any]) -> None:
        """Take up what one process has held; another process's batches join the same steps."""
        if not self.held:
            self.held = list(state["held"])
            self.buffers, self.given_buffers = state["buffers"], state["given_buffers"]
            return
        for step, other in zip(self.held, state["held"], strict=True):
            step.contributions += other.contributions
        for name, buffer in state["buffers"].items():
            self.buffers[name] = self.buffers.get(name, 0) + buffer

    def load_emptied(self, state: Mapping[str, Any]) -> None:
        """Take up another process's steps without its contributions."""
        self.held = [step.emptied() for step in state["held"]]
        self.given_buffers = state["given_buffers"]

    def _book(self, held: HeldStep, towards: Mapping[str, Tensor]) -> None:
        if not towards:
            return
        directions = as_queries(towards)
        for contribution in held.contributions:
            assert contribution.gradients is not None
            shares = {s: [n for n in names if n in towards] for s, names in contribution.shares.items()}
            products, _ = multiply(contribution.gradients, directions, shares, contribution.factor, norms=False)
            found = weighted("update", products, dict.fromkeys(products, held.clip))
            book(self.sums, contribution.example_ids, found, held.moment)


def as_queries(dense: Mapping[str, Tensor]) -> QueryGradients:
    """Dense directions ``[Q, *shape]`` as the query side of products."""
    first = next(iter(dense.values()))
    shapes = {name: torch.Size(values.shape[1:]) for name, values in dense.items()}
    return QueryGradients(PerExampleGradients({n: [Dense(v)] for n, v in dense.items()}, shapes, len(first)))


def total_contribution(contributions: Sequence[Contribution], name: str) -> Any:
    """The sum of all examples' contributions to one parameter's gradient, factor included; 0 if there are none."""
    total: Any = 0
    for one in contributions:
        if one.gradients is not None and name in one.gradients.parts:
            total = total + one.factor * one.gradients.total(name)
    return total
