"""What listens to a module and its optimizers, and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ftrace.gradients import GradientCapture, Projection
from ftrace.online.training_loop import is_compiled_anywhere


class Listening:
    """Hooks on layers and optimizers.

    Args:
        patterns: Globs over the names of the parameters that scores see.
        projection: What gradients are projected with.
        strict: Whether a query's gradient that nobody can read is an error.
        hears_all_of_queries: Whether queries' gradients are wanted for all that is trained, as the ledger does.

    Attributes:
        training: What listens to training.
        queries: What listens to the queries.
    """

    training: GradientCapture
    queries: GradientCapture

    def __init__(
        self, patterns: Sequence[str], projection: Projection | None, *, strict: bool, hears_all_of_queries: bool
    ) -> None:
        self.patterns = patterns
        self.projection = projection
        self.strict = strict
        self.hears_all_of_queries = hears_all_of_queries
        self._captures: list[GradientCapture] = []
        self._handles: list[RemovableHandle] = []

    @property
    def is_attached(self) -> bool:
        """Whether layers are listened to."""
        return bool(self._captures)

    def attach_before_first_call(self, pl_module: LightningModule) -> None:
        """A compiled module keeps to the hooks that it had when it was called first, maybe by sanity checking."""
        if is_compiled_anywhere(pl_module):
            self.attach(pl_module, None)

    def attach(self, pl_module: LightningModule, optimizers: Sequence[Optimizer] | None) -> None:
        """Listen to the layers of what these optimizers have; None: of all that requires a gradient."""
        self._detach_captures()
        optimized = None
        if optimizers is not None:
            optimized = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        self.training = GradientCapture(
            pl_module, self.patterns, optimized, self.projection, refuse_unrecorded=self.strict, reads_graph=True
        )
        self.queries = self.training
        hidden = any(line.status == "excluded" for line in self.training.coverage.lines)
        if self.hears_all_of_queries and hidden:
            self.queries = GradientCapture(
                pl_module, ("*",), optimized, self.projection, refuse_unrecorded=False, reads_graph=True
            )
        self._captures = list(dict.fromkeys([self.training, self.queries]))
        for capture in self._captures:
            capture.attach()

    def follow(
        self,
        pl_module: LightningModule,
        optimizer: Optimizer,
        begins: Callable[[Optimizer], None],
        has_ended: Callable[[Optimizer], None],
    ) -> None:
        """Listen to an optimizer: its own hooks tell what Lightning's can't.

        Args:
            pl_module: The module.
            optimizer: The optimizer.
            begins: Called before a step under manual optimization that Lightning may know nothing of.
            has_ended: Called after a step that has really been taken.
        """

        def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
            if pl_module.automatic_optimization or _is_from_lightning(closure):
                return  # on_before_optimizer_step comes once the closure is done
            if closure is not None:
                raise ValueError(
                    "OnlineTracIn: an optimizer of your own was stepped with a closure, in which nobody can listen. "
                    "Step the one that self.optimizers() gives, or call the closure before the step"
                )
            with without_autocast(pl_module):
                begins(optimizer)

        def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            with torch.no_grad(), without_autocast(pl_module):
                has_ended(optimizer)

        self._handles.append(optimizer.register_step_pre_hook(before))
        self._handles.append(optimizer.register_step_post_hook(after))

    def detach(self) -> None:
        """Remove all hooks; module and optimizers are as they were."""
        self._detach_captures()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _detach_captures(self) -> None:
        for capture in self._captures:
            capture.detach()
        self._captures.clear()


def without_autocast(pl_module: LightningModule) -> torch.autocast:
    """Under manual optimization hooks run inside of the user's autocast, which would round our products, too."""
    return torch.autocast(pl_module.device.type, enabled=False)


def _is_from_lightning(closure: Any) -> bool:
    """Whether a closure is Lightning's, that calls on_before_optimizer_step once it is done."""
    return getattr(getattr(closure, "func", None), "__name__", "") == "_wrap_closure"
