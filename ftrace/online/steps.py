"""The steps of a run's optimizers, which are checked before they are taken and booked afterwards.

A step of an optimizer is

    begun    when its gradients are complete (unclipped under automatic optimization, final under manual optimization)
    ended    when it was taken: second moments include its gradient, and its products can be booked
    skipped  when it was begun but not ended until the batch ends, since a loss scaler has skipped it
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from ftrace.online.checks.conservation import Conservation
from ftrace.online.ledger import LedgerKeeper
from ftrace.online.loop import TrainingLoop
from ftrace.online.messages import warn
from ftrace.online.optimizers.clipping import Clipping
from ftrace.online.optimizers.followed_optimizer import FollowedOptimizer, keeps_gradients
from ftrace.online.optimizers.trained_parameters import TrainedParameters
from ftrace.online.processes import num_processes
from ftrace.online.scoring.contributions import StepTaken
from ftrace.online.scoring.scoring import Scoring


class OptimizerSteps:
    """The optimizer steps of one run.

    Args:
        parameters: The trained parameters, with their optimizers.
        scoring: Books the steps.
        ledger: Books them, too; None without a ledger.
        who: Whose messages these are.

    Attributes:
        first: The step at which tracing began.
        begun: The number of steps begun since, over all optimizers.
        left_out: Steps whose contributions were not finite.
        skipped: Steps that were begun but not taken.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        parameters: TrainedParameters,
        scoring: Scoring,
        ledger: LedgerKeeper | None,
        who: str,
    ) -> None:
        self.loop = loop
        self.parameters = parameters
        self.scoring = scoring
        self.ledger = ledger
        self.who = who
        self.rules = scoring.rules
        self.clipping = Clipping(loop)
        self.first = loop.step
        self.begun = 0
        self.left_out: list[int] = []
        self.skipped: list[int] = []

    @property
    def next(self) -> int:
        """The index of the next step, counted over all optimizers."""
        return self.first + self.begun

    def discard_all(self) -> None:
        """Forget contributions that no step has used: automatic optimization sets gradients to zero."""
        for optimizer in self.parameters.followed:
            self.discard(optimizer)

    def discard(self, optimizer: FollowedOptimizer) -> None:
        """Forget the contributions to an optimizer's current gradients."""
        optimizer.contributions, optimizer.is_open = [], False
        if optimizer.index in self.parameters.conservation:
            self.parameters.conservation[optimizer.index].discard_contributions()

    def begin(self, optimizer: FollowedOptimizer) -> None:
        """Check and remember the gradients with which an optimizer is about to step."""
        self.parameters.refuse_unknown(optimizer)
        self.parameters.covered.refuse_unrecorded()
        check = self.parameters.conservation.get(optimizer.index)
        wants_norm = (check is not None and check.wants_norm) or self.rules.exact_momentum
        norm = self.clipping.before_step(optimizer, wants_norm=wants_norm)
        optimizer.norm_before_step = norm
        optimizer.note_before_step(steps="update" in self.rules.kinds and optimizer.problem is None)
        if self.ledger is not None:
            self.ledger.before_step(optimizer)
        self.begun += 1
        if check is not None and (optimizer.contributions or num_processes() > 1) and _is_finite(optimizer):
            check.check_before_step(
                optimizer.contributions,
                self.clipping.factor,
                norm,
                self.next - 1,
                gradient_scale=self.clipping.gradient_scale,
                is_clipped=self.loop.is_manual,
                check_after=self.clipping.is_measured,
            )

    def end(self, optimizer: FollowedOptimizer) -> None:
        """Book a step that was taken."""
        optimizer.is_stepping = optimizer.is_open = False
        optimizer.steps_taken += 1
        contributions = list(optimizer.contributions)  # manual optimization may add to the optimizer's list later
        if not self.loop.is_manual:
            optimizer.contributions = []
        self.clipping.after_step(optimizer)
        clip = self.clipping.factor
        given = optimizer.gradients_given(1.0 if self.loop.is_manual else clip)
        steps = optimizer.steps(given) if "update" in self.rules.kinds and optimizer.problem is None else {}
        projection = self.rules.projection
        step = StepTaken(
            self.next - 1,
            optimizer.index,
            optimizer.rates,
            clip,
            steps,
            contributions,
            self.scoring.moment(self.loop.epoch),
            tuple(name for _, name, _ in optimizer.parameters(covered=True)),
            given=optimizer.as_contribution(given, projection, clip) if steps and projection is not None else None,
        )
        moments = partial(optimizer.preconditioners, elementwise=False)
        if not _is_finite(optimizer) or not self.scoring.take(step, moments):
            self._leave_out()
        if not self.loop.is_manual:  # otherwise another step may use the same gradients
            for contribution in contributions:
                contribution.projected, contribution.whitened = {}, {}
        if self.ledger is not None:
            self.ledger.after_step(optimizer, steps, given)
        check = self.parameters.conservation.get(optimizer.index)
        if check is not None and check.wants_check_after_step and keeps_gradients(optimizer.optimizer):
            self._check_after(check, optimizer)

    def skip_begun(self) -> None:
        """Record, when a batch ends, the steps that were begun but not taken."""
        for optimizer in self.parameters.followed:
            if optimizer.is_stepping:
                optimizer.is_stepping = False
                self.skipped.append(self.next - 1)
                self.discard(optimizer)

    def _check_after(self, check: Conservation, optimizer: FollowedOptimizer) -> None:
        norm = optimizer.gradient_norm()
        if not (self.loop.zeroes_gradients_itself and norm == 0):
            check.check_after_step(norm, self.next - 1, self.clipping.factor if self.clipping.is_measured else 1.0)

    def _leave_out(self) -> None:
        """Leave out a step whose contributions are not finite, which would spoil all its examples' scores."""
        if not self.left_out:
            warn(
                f"{self.who}: the contributions of step {self.next - 1} are not finite: the loss or a gradient is "
                "NaN or infinite. Its scores are left out, as are those of all such later steps; the manifest lists "
                "the steps"
            )
        self.left_out.append(self.next - 1)

    def state(self) -> dict[str, Any]:
        """Return the steps that were taken, left out and skipped."""
        return {
            "first_step": self.first,
            "taken": self.begun,
            "steps_left_out": list(self.left_out),
            "steps_skipped": list(self.skipped),
            **self.parameters.state(),
        }

    def load(self, shared: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.first, self.begun = shared["first_step"], shared["taken"]
        self.left_out, self.skipped = shared["steps_left_out"], shared["steps_skipped"]
        self.parameters.load(shared)


def _is_finite(optimizer: FollowedOptimizer) -> bool:
    return optimizer.norm_before_step is None or math.isfinite(optimizer.norm_before_step)
