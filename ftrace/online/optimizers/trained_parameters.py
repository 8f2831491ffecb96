"""The parameters that are currently trained, their optimizers, and which of them scores cover."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ftrace.gradients import Preconditioner
from ftrace.online.adapters import why_without_gradient
from ftrace.online.checks.conservation import Conservation
from ftrace.online.checks.failures import Failures
from ftrace.online.hooks import Hooks, is_compiled_anywhere, refuse_batch_statistics
from ftrace.online.loop import TrainingLoop
from ftrace.online.optimizers.covered_parameters import CoveredParameters
from ftrace.online.optimizers.followed_optimizer import FollowedOptimizer
from ftrace.online.precision import eps_of_passes
from ftrace.online.scoring.rules import ScoringRules


class TrainedParameters:
    """The trained parameters of a run.

    Args:
        hooks: The hooks on its module.
        rules: How scores are computed.
        failures: Where checks report; None without checks.
        strict: Whether a trained parameter that can't be covered is an error.
        seed: For the random choices of the checks.

    Attributes:
        covered: The parameters that scores cover.
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
        why_none = why_without_gradient(self.loop.module)
        self.covered = CoveredParameters(
            coverage, named, self.who, strict=self.strict, trained=self._known.keys(), why_none=why_none
        )
        names = {id(p): name for name, p in named.items()}
        taken = {optimizer.index: optimizer.steps_taken for optimizer in self.followed}
        self.followed = [
            FollowedOptimizer(index, optimizer, names, self.covered.by_name, by_layer="layer" in self.rules.breakdown)
            for index, optimizer in enumerate(self.loop.optimizers)
        ]
        self.conservation: dict[int, Conservation] = {}
        for followed in self.followed:
            followed.steps_taken = taken.get(followed.index, 0)
            if self.failures is not None:
                covered = {name: p for _, name, p in followed.parameters(covered=True)}
                self.conservation[followed.index] = self.make_check(Conservation, covered, clip=self.loop.wording.clip)

    def update_coverage(self) -> None:
        """Adopt the hooks' current coverage."""
        named = dict(self.loop.module.named_parameters())
        self.covered.update_coverage(self.hooks.training.coverage, named)
        for optimizer in self.followed:
            optimizer.covered = frozenset(self.covered.by_name)
        for check in self.conservation.values():
            check.parameters = {name: p for name, p in check.parameters.items() if name in self.covered.by_name}

    def make_check(self, kind: Any, parameters: Mapping[str, nn.Parameter], **settings: Any) -> Any:
        """Make a check of some parameters with this run's settings."""
        return kind(
            parameters,
            self.failures,
            seed=self.seed,
            projection=self.rules.projection,
            **settings,
            eps=eps_of_passes(self.loop),
        )

    def _requiring_gradients(self) -> list[nn.Parameter]:
        groups = [group for optimizer in self.loop.optimizers for group in optimizer.param_groups]
        return [p for group in groups for p in group["params"] if p.requires_grad]

    def all(self) -> dict[str, nn.Parameter]:
        """Return all trained parameters by name."""
        return {name: p for name, p in self.loop.module.named_parameters() if id(p) in self._known}

    def gaps(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters whose gradients even the queries' capture doesn't read, by name."""
        read = set(self.hooks.queries.coverage.covered)
        return {name: p for name, p in self.all().items() if name not in read}

    def find(self, optimizer: Optimizer) -> FollowedOptimizer:
        """Return the follower of an optimizer."""
        optimizer = getattr(optimizer, "optimizer", optimizer)
        return next(followed for followed in self.followed if followed.optimizer is optimizer)

    def preconditioners(self, *, elementwise: bool) -> dict[str, Preconditioner]:
        """Compute one over the root of second moments, for all optimizers' covered parameters that have any.

        Args:
            elementwise: Whether to keep the second moments of matrices as they are, not as the closest outer product.
        """
        preconditioners: dict[str, Preconditioner] = {}
        for optimizer in self.followed:
            preconditioners |= optimizer.preconditioners(elementwise=elementwise)
        return preconditioners

    def add_unfrozen(self) -> list[str]:
        """Cover parameters that were unfrozen, or given to an optimizer, since this was last called.

        Returns:
            Their names.

        Raises:
            ValueError: If parameters can't be added at this moment, or in this module.
        """
        new = [p for p in self._requiring_gradients() if id(p) not in self._known]
        if not new:
            return []
        names = {id(p): name for name, p in self.loop.module.named_parameters()}
        unfrozen = [names.get(id(p), f"a parameter of shape {tuple(p.shape)}") for p in new]
        if any(optimizer.is_open for optimizer in self.followed):
            raise ValueError(
                f"{self.who}: {unfrozen[0]!r} was unfrozen between a backward pass and its optimizer step. Unfreeze "
                f"between steps{self.loop.wording.unfreeze}"
            )
        if is_compiled_anywhere(self.loop.module):
            raise ValueError(
                f"{self.who}: {unfrozen[0]!r} was unfrozen in a compiled module, whose hooks can't change any more. "
                "Unfreeze before training, or train without torch.compile"
            )
        self._find_again()
        return unfrozen

    def cover_again(self, names: Collection[str]) -> bool:
        """Cover parameters that a run had trained before it was resumed, and that are frozen now, such as an adapter.

        Args:
            names: The parameters that it had trained.

        Returns:
            Whether there are any.
        """
        optimized = {
            id(p) for optimizer in self.loop.optimizers for group in optimizer.param_groups for p in group["params"]
        }
        frozen = {
            id(p): p
            for name, p in self.loop.module.named_parameters()
            if name in names and id(p) in optimized and id(p) not in self._known
        }
        if not frozen or is_compiled_anywhere(self.loop.module):  # a compiled module says so when they are unfrozen
            return False
        self._known |= frozen
        self._find_again()
        return True

    def _find_again(self) -> None:
        with self.all_require_gradients():  # what was trained before stays covered: it may be unfrozen again
            self.hooks.attach(self.loop.module, self.loop.optimizers)
            self._find()

    def state(self) -> dict[str, Any]:
        """Return the number of steps that each optimizer has taken, and the names of what is trained."""
        return {"steps_taken": [optimizer.steps_taken for optimizer in self.followed], "trained": sorted(self.all())}

    def load(self, shared: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        for optimizer, taken in zip(self.followed, shared["steps_taken"], strict=True):
            optimizer.steps_taken = taken

    def refuse_unknown(self, followed: FollowedOptimizer) -> None:
        """Refuse, right before an optimizer's step, a gradient that was not recorded.

        Raises:
            ValueError: If there is such a gradient.
        """
        for group in followed.optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None and id(p) not in self._known:
                    raise ValueError(
                        f"{self.who}: a parameter of shape {tuple(p.shape)} was unfrozen or added to the optimizer "
                        f"within a batch. Unfreeze between batches{self.loop.wording.unfreeze}"
                    )
        if self.loop.is_manual and not followed.contributions and followed.has_gradients():
            raise ValueError(
                f"{self.who}: an optimizer steps with gradients from a backward pass that the training loop "
                f"didn't run. Call {self.loop.wording.backward} instead of loss.backward()"
            )

    @contextmanager
    def all_require_gradients(self) -> Iterator[None]:
        """Let all trained parameters require gradients while active, as manual optimization may switch some off."""
        off = [p for p in self._known.values() if not p.requires_grad]
        for parameter in off:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in off:
                parameter.requires_grad_(False)
