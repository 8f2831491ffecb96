"""The balances of one optimizer's projected ``update`` products over a run: when they are taken, and which is in use.

:mod:`ftrace.gradients.balance` says what a balance is. The first one is taken from the second moments right after the
first step, whose contributions are held unprojected until then; later ones after the steps 2, 4, 8, ... and when other
parameters take part. Each is used from the next backward pass on that begins a gradient. So all contributions to a
gradient have the same balance, and so have most of those that a momentum ring holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ftrace.gradients import PerExampleGradients, Preconditioner, Projection, balancing, divided, project

Moments = Callable[[], Mapping[str, Preconditioner]]


class Balances:
    """The balances of one optimizer, by the number of its steps when they were taken.

    Args:
        projection: The projection of gradients.

    Attributes:
        current: The key of the one with which contributions are projected; 0 before the first.
        latest: The key of the latest one.
        steps: The number of steps so far.
        known: By key, ``D`` by parameter. Parameters without one are projected as they are.
    """

    def __init__(self, projection: Projection) -> None:
        self.projection = projection
        self.current = self.latest = self.steps = 0
        self.known: dict[int, dict[str, Preconditioner]] = {}
        self._projections: dict[int, Projection] = {}

    def begin(self) -> None:
        """Use the latest balance, since a new gradient begins."""
        self.current = self.latest

    def step(self, names: Collection[str], moments: Moments, in_use: Collection[int]) -> None:
        """Count a step, and take a new balance after it if that is due.

        Args:
            names: The parameters that the step changed.
            moments: Computes one over the root of second moments after the step, by parameter.
            in_use: The keys of balances that earlier steps still need.
        """
        self.steps += 1
        is_power_of_two = self.steps & (self.steps - 1) == 0
        if is_power_of_two or not self.known[self.latest].keys() >= set(names):
            kept = {self.current, *in_use}
            self.known = {key: balance for key, balance in self.known.items() if key in kept}
            self._projections = {key: projection for key, projection in self._projections.items() if key in kept}
            self.latest = self.steps
            self.known[self.latest] = {name: balancing(moment) for name, moment in moments().items()}
        if not self.current:
            self.begin()

    def project(self, gradients: PerExampleGradients) -> PerExampleGradients:
        """Project contributions with the current balance: ``D c``."""
        if self.current not in self._projections:
            self._projections[self.current] = self.projection.preconditioned(self.known[self.current])
        return project(gradients, self._projections[self.current])

    def divide(self, scales: Mapping[str, float | Preconditioner], key: int) -> dict[str, float | Preconditioner]:
        """Compute what query gradients are multiplied by where contributions have this balance: ``P / D``."""
        balance = self.known[key]
        return {
            name: scale if isinstance(scale, float) or name not in balance else divided(scale, balance[name])
            for name, scale in scales.items()
        }

    def state(self) -> dict[str, Any]:
        """Return all state; it is the same in all processes."""
        return {"current": self.current, "latest": self.latest, "steps": self.steps, "known": dict(self.known)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.current, self.latest, self.steps = state["current"], state["latest"], state["steps"]
        self.known = dict(state["known"])
