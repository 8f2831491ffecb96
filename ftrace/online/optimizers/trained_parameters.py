"""The parameters that are currently trained: by which optimizers, and which of them scores cover."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ftrace.gradients import Preconditioner
from ftrace.online.checks.conservation import Conservation
from ftrace.online.checks.failures import Failures
from ftrace.online.hooks import Hooks, is_compiled_anywhere, refuse_batch_statistics
from ftrace.online.loop import TrainingLoop
from ftrace.online.optimizers.covered_parameters import CoveredParameters
from ftrace.online.optimizers.followed_optimizer import FollowedOptimizer
from ftrace.online.scoring.rules import ScoringRules


class TrainedParameters:
    """The parameters of a run.

    Args:
        loop: The training loop.
        hooks: The hooks on its module.
        rules: How scores are made.
        failures: Where checks report; None without checks.
        strict: Whether a gap is an error.
        seed: Of the checks.

    Attributes:
        covered: Those that scores cover.
        followed: The optimizers.
        conservation: By optimizer, the check that its contributions sum to its gradient.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        hooks: Hooks,
        rules: ScoringRules,
        failures: Failures | None,
        *,
        strict: bool,
        seed: int,
    ) -> None:
        self.loop = loop
        self.hooks = hooks
        self.who = hooks.who
        self.rules = rules
        self.failures = failures
        self.strict = strict
        self.seed = seed
        self.followed: list[FollowedOptimizer] = []
        self._find()

    def _find(self) -> None:
        named = dict(self.loop.module.named_parameters())
        self._known = {id(p): p for p in self._requiring_gradients()}
        coverage = self.hooks.training.coverage
        if self.strict:
            refuse_batch_statistics(self.loop.module, [gap.parameter for gap in coverage.gaps], self.who)
        self.covered = CoveredParameters(coverage, named, self.who, strict=self.strict, trained=self._known.keys())
        names = {id(p): name for name, p in named.items()}
        taken = {one.index: one.steps_taken for one in self.followed}
        self.followed = [
            FollowedOptimizer(index, optimizer, names, self.covered.by_name, by_layer="layer" in self.rules.breakdown)
            for index, optimizer in enumerate(self.loop.optimizers)
        ]
        self.conservation: dict[int, Conservation] = {}
        for one in self.followed:
            one.steps_taken = taken.get(one.index, 0)
            if self.failures is not None:
                own = {name: p for _, name, p in one.parameters(covered=True)}
                self.conservation[one.index] = self.make_check(Conservation, own)

    def see_coverage(self) -> None:
        """Other parameters are covered from here on."""
        named = dict(self.loop.module.named_parameters())
        self.covered.see(self.hooks.training.coverage, named)
        for one in self.followed:
            one.covered = frozenset(self.covered.by_name)
        for check in self.conservation.values():
            check.parameters = {name: p for name, p in check.parameters.items() if name in self.covered.by_name}

    @property
    def is_coarse(self) -> bool:
        """Whether passes are in half precision."""
        return self.loop.precision not in ("32-true", "64-true")

    def make_check(self, kind: Any, parameters: Mapping[str, nn.Parameter]) -> Any:
        """Make a check of some parameters with this run's settings."""
        return kind(parameters, self.failures, seed=self.seed, projection=self.rules.projection, coarse=self.is_coarse)

    def _requiring_gradients(self) -> list[nn.Parameter]:
        groups = [group for optimizer in self.loop.optimizers for group in optimizer.param_groups]
        return [p for group in groups for p in group["params"] if p.requires_grad]

    def all(self) -> dict[str, nn.Parameter]:
        """Return all trained parameters by name."""
        return {name: p for name, p in self.loop.module.named_parameters() if id(p) in self._known}

    def gaps(self) -> dict[str, nn.Parameter]:
        """Return those whose gradients not even the queries' capture reads."""
        read = set(self.hooks.queries.coverage.covered)
        return {name: p for name, p in self.all().items() if name not in read}

    def find(self, optimizer: Optimizer) -> FollowedOptimizer:
        """Return the follower of an optimizer."""
        optimizer = getattr(optimizer, "optimizer", optimizer)
        return next(one for one in self.followed if one.optimizer is optimizer)

    def preconditioners(self, *, elementwise: bool) -> dict[str, Preconditioner]:
        """Compute one over the root of second moments, for all optimizers' covered parameters that have any.

        Args:
            elementwise: Keep those of matrices as they are, instead of the closest outer product.
        """
        found: dict[str, Preconditioner] = {}
        for one in self.followed:
            found |= one.preconditioners(elementwise=elementwise)
        return found

    def add_unfrozen(self) -> list[str]:
        """Cover parameters that were unfrozen, or given to an optimizer, since this was last called.

        Returns:
            Their names.

        Raises:
            ValueError: If that can't be done at this moment, or in this module.
        """
        new = [p for p in self._requiring_gradients() if id(p) not in self._known]
        if not new:
            return []
        names = {id(p): name for name, p in self.loop.module.named_parameters()}
        unfrozen = [names.get(id(p), f"a parameter of shape {tuple(p.shape)}") for p in new]
        if any(one.is_open for one in self.followed):
            raise ValueError(
                f"{self.who}: {unfrozen[0]!r} was unfrozen between a backward pass and its optimizer step. Unfreeze "
                f"between steps{self.loop.wording.unfreeze}"
            )
        if is_compiled_anywhere(self.loop.module):
            raise ValueError(
                f"{self.who}: {unfrozen[0]!r} was unfrozen in a compiled module, whose hooks can't change any more. "
                "Unfreeze before training, or train without torch.compile"
            )
        self.hooks.attach(self.loop.module, self.loop.optimizers)
        self._find()
        return unfrozen

    def state(self) -> dict[str, Any]:
        """Return how many steps each optimizer has taken."""
        return {"steps_taken": [optimizer.steps_taken for optimizer in self.followed]}

    def load(self, shared: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state` was called."""
        for optimizer, taken in zip(self.followed, shared["steps_taken"], strict=True):
            optimizer.steps_taken = taken

    def refuse_unknown(self, one: FollowedOptimizer) -> None:
        """Refuse, right before an optimizer's step, a gradient that was not recorded.

        Raises:
            ValueError: If there is one.
        """
        for group in one.optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None and id(p) not in self._known:
                    raise ValueError(
                        f"{self.who}: a parameter of shape {tuple(p.shape)} was unfrozen or added to the optimizer "
                        f"within a batch. Unfreeze between batches{self.loop.wording.unfreeze}"
                    )
        if self.loop.is_manual and not one.window and one.has_gradients():
            raise ValueError(
                f"{self.who}: an optimizer steps with gradients from a backward pass that the training loop "
                f"didn't run. Call {self.loop.wording.backward} instead of loss.backward()"
            )

    @contextmanager
    def all_require_gradients(self) -> Iterator[None]:
        """Let all trained parameters require gradients, since manual optimization may have switched some off."""
        off = [p for p in self._known.values() if not p.requires_grad]
        for parameter in off:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in off:
                parameter.requires_grad_(False)
