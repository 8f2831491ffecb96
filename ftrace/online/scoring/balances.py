"""The balances of one optimizer's projected ``update`` products over a run: when they are taken, and which is in use.

:mod:`ftrace.gradients.balance` says what a balance is. The first steps have none and are exact, with contributions that
are held unprojected until the step has been taken: where second moments are those of k steps, some are close to 0, and
one over their root has no finite variance before the third step, so no projection helps. The first balance is taken
after the last of these steps, others after twice as many steps each, and when other parameters take part. Each is used
from the next backward pass on that begins a gradient, so all contributions to a gradient have the same balance, and so
have most of those that a ring of momentum holds. Whether a pass begins a gradient must be known before its forward
pass, and may turn out otherwise in loops that set gradients to zero whenever they like; contributions with several
balances are then multiplied without any.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from ftrace.gradients import Preconditioner, Projection, balancing, divided, project
from ftrace.online.scoring.contributions import Contribution

EXACT_STEPS = 4
Moments = Callable[[], Mapping[str, Preconditioner]]


class Balances:
    """The balances of one optimizer, by the number of its steps when they were taken.

    Args:
        projection: The projection of gradients.

    Attributes:
        current: The key of the one with which contributions are projected; 0 as long as steps are exact.
        latest: The key of the latest one.
        recorded: The key of the one that the latest recording projects with.
        steps: The number of steps so far.
        known: By key, ``D`` by parameter. Parameters without one are projected as they are.
    """

    def __init__(self, projection: Projection) -> None:
        self.projection = projection
        self.current = self.latest = self.recorded = self.steps = 0
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
            in_use: The keys of balances that this step and earlier ones still need.
        """
        self.steps += 1
        if self.steps < EXACT_STEPS:
            return
        if self.steps >= self._due or not self.known[self.latest].keys() >= set(names):
            kept = {self.current, self.latest, self.recorded, *in_use}  # a pass may have begun with the latest already
            self.known = {key: balance for key, balance in self.known.items() if key in kept}
            self._projections = {key: projection for key, projection in self._projections.items() if key in kept}
            self.latest = self.steps
            self.known[self.latest] = {name: balancing(moment) for name, moment in moments().items()}

    @property
    def _due(self) -> int:
        return max(EXACT_STEPS, 2 * self.latest)

    def balanced(self, contribution: Contribution, key: int | None = None) -> Contribution:
        """Project a contribution with a balance, unless that has been done: ``D c``.

        Args:
            key: The balance's key; default: the current one's.
        """
        if contribution.unprojected is None:
            return contribution
        key = self.current if key is None else key
        projected = project(contribution.unprojected, self._projection_with(key))
        return replace(contribution, balanced=projected, balance=key, unprojected=None)

    def next_projection(self, *, begins: bool) -> Projection | None:
        """Return the projection that the contributions of the next backward pass need.

        Args:
            begins: Whether it begins a new gradient.

        Returns:
            None as long as steps are exact.
        """
        self.recorded = self.latest if begins else self.current
        return self._projection_with(self.recorded) if self.recorded else None

    def key_of(self, projection: Projection) -> int:
        """Return the key of the projection that :meth:`next_projection` has returned last."""
        assert projection is self._projections[self.recorded]
        return self.recorded

    def _projection_with(self, key: int) -> Projection:
        if key not in self._projections:
            self._projections[key] = self.projection.preconditioned(self.known[key])
        return self._projections[key]

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
