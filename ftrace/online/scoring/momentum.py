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
FORGOTTEN = 1e-9  # fraction at which nothing of it remains in the ledger, either


@dataclass
class HeldStep:
    """A step that is held in the ring.

    Args:
        moment: The time of the step.
        clip: The clip factor kappa.
        steps: By parameter, what the step did with it; its scale is in ``directions`` already.
        directions: By balance and parameter, ``Y``, ``[Q, *shape]``: for the contributions of this and earlier steps.
        contributions: All contributions to the gradients that the step used.
        given: The gradient that the optimizer was given, as one example's contribution, projected; None if nothing is
            projected.
        balance: The key of the balance of its contributions; 0 without balances.
    """

    moment: Moment
    clip: float
    steps: dict[str, ParameterStep]
    directions: dict[tuple[int, str], Tensor]
    contributions: list[Contribution]
    given: Contribution | None = None
    balance: int = 0

    def emptied(self) -> HeldStep:
        """Drop the contributions."""
        self.contributions = []
        return self


def horizon_of(decay: float) -> int:
    """Compute the number of steps after which 1% of a gradient's effect remains.

    Args:
        decay: The factor by which momentum decays at each step.
    """
    slowest = min(decay, 1 - 1e-6)
    return max(1, math.ceil(math.log(REMAINDER) / math.log(slowest))) if slowest else 1


class MomentumRing:
    """The steps of one optimizer whose gradients still have an effect through momentum.

    Args:
        sums: Where scores are added up.

    Attributes:
        held: The steps, from the oldest to the latest.
        buffers: By balance and parameter, the part of the optimizer's momentum buffer that comes from contributions.
        given_buffers: The same from the gradients that the optimizer was given.
        balances: By key, for how many steps each balance is still needed.
    """

    def __init__(self, sums: ScoreAccumulator) -> None:
        self.sums = sums
        self.held: list[HeldStep] = []
        self.buffers: dict[tuple[int, str], Tensor] = {}
        self.given_buffers: dict[tuple[int, str], Tensor] = {}
        self.balances: dict[int, int] = {}

    @property
    def horizon(self) -> int:
        """The number of steps after which 1% of a gradient's effect remains, for the slowest parameter."""
        decays = [step.decay for held in self.held[-1:] for step in held.steps.values() if step.decay]
        return horizon_of(max(decays, default=0.0))

    def live_balances(self, steps: Mapping[str, ParameterStep], balance: int) -> list[int]:
        """Return the keys of all balances of contributions that a step has an effect of.

        Args:
            steps: By parameter, what the step did with it.
            balance: The key of the balance of the step's own contributions.
        """
        slowest = min(max((step.decay for step in steps.values()), default=0.0), 1 - 1e-6)
        lasting = math.ceil(math.log(FORGOTTEN) / math.log(slowest)) if slowest else 0
        self.balances = {key: left - 1 for key, left in self.balances.items() if left > 1} | {balance: lasting + 1}
        for buffers in (self.buffers, self.given_buffers):
            for key in [key for key in buffers if key[0] not in self.balances]:
                del buffers[key]
        return list(self.balances)

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
        needed = {of_step.balance for of_step in self.held}
        held.directions = {key: direction for key, direction in held.directions.items() if key[0] in needed}
        horizon = self.horizon
        if len(self.held) >= horizon + max(1, horizon // 2):
            self.flush(len(self.held) - horizon)
        return gained, given

    def _gained(
        self, held: HeldStep, contributions: Sequence[Contribution], buffers: dict[tuple[int, str], Tensor]
    ) -> Tensor:
        total = torch.zeros(len(self.sums.query_ids), dtype=torch.float64)
        products = []
        for key, dense in held.directions.items():
            balance, name = key
            step, direction = held.steps[name], flat_rows(dense)
            current = total_contribution(contributions if balance == held.balance else (), name, held.clip)
            if current is not None:
                added = step.gain * current
                buffer = added.add_(buffers[key], alpha=step.decay) if key in buffers else added
                moved = (step.direct * current).add_(buffer, alpha=step.from_buffer)
            elif key in buffers:
                buffer = step.decay * buffers[key]
                moved = step.from_buffer * buffer
            else:
                continue
            buffers[key] = buffer
            products.append(direction @ moved.flatten().to(direction))
        if products:
            stacked = torch.stack([of_parameter.to(products[0].device) for of_parameter in products])
            total[: stacked.shape[1]] = stacked.sum(0, dtype=torch.float64).cpu()
        return total

    def flush(self, count: int | None = None) -> None:
        """Book the oldest steps.

        Args:
            count: The number of steps; default: all, since training has ended and no step will follow.
        """
        last = count is None
        count = len(self.held) if count is None else count
        effect: dict[tuple[int, str], Tensor] = {}  # decay_{t+1} E_{t+1}
        seen: set[tuple[int, str]] = set()
        for index in reversed(range(len(self.held))):
            held = self.held[index]
            towards: dict[str, Tensor] = {}
            for key, unpadded in held.directions.items():
                step, direction = held.steps[key[1]], padded(unpadded, len(self.sums.query_ids))
                rest = effect.get(key)
                via_buffer = direction * step.from_buffer
                if rest is not None:
                    via_buffer += rest
                elif key not in seen and not last and step.decay < 1:
                    via_buffer = direction * (step.from_buffer / (1 - step.decay))
                seen.add(key)
                if index < count and key[0] == held.balance:
                    towards[key[1]] = (direction * step.direct).add_(via_buffer, alpha=step.gain)
                effect[key] = via_buffer * step.decay
            if index < count:
                self._book(held, towards)
        del self.held[:count]

    def state(self) -> dict[str, Any]:
        """Return all that the ring holds."""
        return {
            "held": list(self.held),
            "buffers": dict(self.buffers),
            "given_buffers": dict(self.given_buffers),
            "balances": dict(self.balances),
        }

    def add_state(self, state: Mapping[str, Any]) -> None:
        """Add the state of one process; another process's contributions are added to the same steps."""
        if not self.held:
            self.held = list(state["held"])
            self.buffers, self.given_buffers = state["buffers"], state["given_buffers"]
            self.balances = state["balances"]
            return
        for step, other in zip(self.held, state["held"], strict=True):
            step.contributions += other.contributions
        for key, buffer in state["buffers"].items():
            self.buffers[key] = self.buffers.get(key, 0) + buffer

    def load_emptied(self, state: Mapping[str, Any]) -> None:
        """Load another process's steps without its contributions."""
        self.held = [step.emptied() for step in state["held"]]
        self.given_buffers, self.balances = state["given_buffers"], state["balances"]

    def _book(self, held: HeldStep, towards: Mapping[str, Tensor]) -> None:
        if not towards:
            return
        directions = as_queries(towards)
        for contribution in held.contributions:
            shares = {share: [n for n in names if n in towards] for share, names in contribution.shares.items()}
            products, _ = multiply(contribution.for_update, directions, shares, contribution.factor, norms=False)
            scores = weighted("update", products, dict.fromkeys(products, held.clip))
            book_scores(self.sums, contribution.example_ids, scores, held.moment)


def as_queries(dense: Mapping[str, Tensor]) -> QueryGradients:
    """Make the query side of products from dense directions, ``[Q, *shape]`` by parameter."""
    first = next(iter(dense.values()))
    shapes = {name: torch.Size(values.shape[1:]) for name, values in dense.items()}
    return QueryGradients(PerExampleGradients({n: [Dense(v)] for n, v in dense.items()}, shapes, len(first)))


def total_contribution(contributions: Sequence[Contribution], name: str, clip: float = 1.0) -> Tensor | None:
    """Sum all examples' contributions to one parameter's gradient, factor included; None if there are none.

    Args:
        clip: Another factor.
    """
    total: Tensor | None = None
    for contribution in contributions:
        gradients = contribution.for_update
        if name in gradients.parts:
            of_batch = clip * contribution.factor * gradients.total(name)
            total = of_batch if total is None else total + of_batch
    return total
