"""What training changes at the moment: by which optimizers, and how much of it scores see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from ftrace.gradients import Preconditioner
from ftrace.online.checks.self_check import Conservation, Failures
from ftrace.online.hooks import Listening
from ftrace.online.optimizers.covered_parameters import CoveredParameters
from ftrace.online.optimizers.followed_optimizer import FollowedOptimizer
from ftrace.online.scoring.rules import ScoringRules
from ftrace.online.training_loop import is_compiled_anywhere, refuse_batch_statistics


class TrainedParameters:
    """The parameters of a run.

    Args:
        trainer: The trainer.
        pl_module: The module.
        listening: What listens to it.
        rules: How scores are made.
        failures: Where checks report; None without checks.
        strict: Whether a gap is an error.
        seed: Of the checks.

    Attributes:
        covered: Those that scores see.
        followed: The optimizers.
        conservation: By optimizer, the check that its contributions sum to its gradient.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        listening: Listening,
        rules: ScoringRules,
        failures: Failures | None,
        *,
        strict: bool,
        seed: int,
    ) -> None:
        self.trainer = trainer
        self.pl_module = pl_module
        self.listening = listening
        self.rules = rules
        self.failures = failures
        self.strict = strict
        self.seed = seed
        self.followed: list[FollowedOptimizer] = []
        self._find()

    def _find(self) -> None:
        named = dict(self.pl_module.named_parameters())
        self._known = {id(p): p for p in self._requiring_gradients()}
        coverage = self.listening.training.coverage
        if self.strict:
            refuse_batch_statistics(self.pl_module, [gap.parameter for gap in coverage.gaps])
        self.covered = CoveredParameters(coverage, named, strict=self.strict, trained=self._known.keys())
        names = {id(p): name for name, p in named.items()}
        taken = {one.index: one.steps_taken for one in self.followed}
        self.followed = [
            FollowedOptimizer(index, optimizer, names, self.covered.by_name, by_layer="layer" in self.rules.breakdown)
            for index, optimizer in enumerate(self.trainer.optimizers)
        ]
        self.conservation: dict[int, Conservation] = {}
        for one in self.followed:
            one.steps_taken = taken.get(one.index, 0)
            if self.failures is not None:
                own = {name: p for _, name, p in one.parameters(covered=True)}
                self.conservation[one.index] = self.make_check(Conservation, own)

    def see_coverage(self) -> None:
        """Other parameters can be read from here on."""
        named = dict(self.pl_module.named_parameters())
        self.covered.see(self.listening.training.coverage, named)
        for one in self.followed:
            one.covered = frozenset(self.covered.by_name)
        for check in self.conservation.values():
            check.parameters = {name: p for name, p in check.parameters.items() if name in self.covered.by_name}

    @property
    def is_coarse(self) -> bool:
        """Whether passes are in half precision."""
        return self.trainer.precision not in ("32-true", "64-true")

    def make_check(self, kind: Any, parameters: Mapping[str, nn.Parameter]) -> Any:
        """A check of some parameters, as this run needs it."""
        return kind(parameters, self.failures, seed=self.seed, projection=self.rules.projection, coarse=self.is_coarse)

    def _requiring_gradients(self) -> list[nn.Parameter]:
        groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        return [p for group in groups for p in group["params"] if p.requires_grad]

    def all(self) -> dict[str, nn.Parameter]:
        """All that training changes, by name."""
        return {name: p for name, p in self.pl_module.named_parameters() if id(p) in self._known}

    def gaps(self) -> dict[str, nn.Parameter]:
        """Those that not even what listens to the queries reads."""
        read = set(self.listening.queries.coverage.covered)
        return {name: p for name, p in self.all().items() if name not in read}

    def find(self, optimizer: Optimizer) -> FollowedOptimizer:
        """What follows an optimizer."""
        optimizer = getattr(optimizer, "optimizer", optimizer)
        return next(one for one in self.followed if one.optimizer is optimizer)

    def preconditioners(self, *, elementwise: bool) -> dict[str, Preconditioner]:
        """One over the root of second moments, of all optimizers' covered parameters that have any.

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
        names = {id(p): name for name, p in self.pl_module.named_parameters()}
        unfrozen = [names.get(id(p), f"a parameter of shape {tuple(p.shape)}") for p in new]
        if any(one.is_open for one in self.followed):
            raise ValueError(
                f"OnlineTracIn: {unfrozen[0]!r} was unfrozen between a backward pass and its optimizer step. Unfreeze "
                "between steps, such as in on_train_epoch_start"
            )
        if is_compiled_anywhere(self.pl_module):
            raise ValueError(
                f"OnlineTracIn: {unfrozen[0]!r} was unfrozen in a compiled module, whose hooks can't change any more. "
                "Unfreeze before training, or train without torch.compile"
            )
        self.listening.attach(self.pl_module, self.trainer.optimizers)
        self._find()
        return unfrozen

    def refuse_unknown(self, one: FollowedOptimizer) -> None:
        """Refuse a gradient that nobody has listened to, right before an optimizer's step.

        Raises:
            ValueError: If there is one.
        """
        for group in one.optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None and id(p) not in self._known:
                    raise ValueError(
                        f"OnlineTracIn: a parameter of shape {tuple(p.shape)} was unfrozen or added to the optimizer "
                        "within a batch. Unfreeze between batches, such as in on_train_epoch_start"
                    )
        if not self.pl_module.automatic_optimization and not one.window and one.has_gradients():
            raise ValueError(
                "OnlineTracIn: an optimizer steps with gradients of a backward pass that nothing was told of. Call "
                "self.manual_backward(loss) instead of loss.backward()"
            )

    @contextmanager
    def all_require_gradients(self) -> Iterator[None]:
        """By hand, parameters of other optimizers may be switched off for a moment: queries depend on them still."""
        off = [p for p in self._known.values() if not p.requires_grad]
        for parameter in off:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in off:
                parameter.requires_grad_(False)
