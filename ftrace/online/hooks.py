"""Hooks on a module's layers and its optimizers; all are removed after training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ftrace.gradients import GradientCapture, Projection, is_compiled
from ftrace.online.loop import TrainingLoop
from ftrace.online.undisturbed.modes import without_autocast


class Hooks:
    """The hooks of a traced run.

    Args:
        patterns: Globs over the names of the parameters that scores cover.
        projection: The projection of gradients; None if there is none.
        who: Whose messages these are.
        strict: Whether a gradient that can't be read is an error.
        all_of_queries: Whether queries' gradients are needed for all trained parameters, as for the ledger.

    Attributes:
        training: Records training.
        queries: Records the queries; the same capture if both record the same parameters.
    """

    training: GradientCapture
    queries: GradientCapture

    def __init__(
        self, patterns: Sequence[str], projection: Projection | None, who: str, *, strict: bool, all_of_queries: bool
    ) -> None:
        self.patterns = patterns
        self.projection = projection
        self.who = who
        self.strict = strict
        self.all_of_queries = all_of_queries
        self._captures: list[GradientCapture] = []
        self._handles: list[RemovableHandle] = []

    @property
    def is_attached(self) -> bool:
        """Whether there are hooks on layers."""
        return bool(self._captures)

    def attach_before_first_call(self, module: nn.Module) -> None:
        """Attach to a compiled module, whose hooks can't change after its first call; do nothing for others."""
        if is_compiled_anywhere(module):
            self.attach(module, None)

    def attach(self, module: nn.Module, optimizers: Sequence[Optimizer] | None) -> None:
        """Attach to the layers of the parameters that these optimizers train; None: of all that require gradients."""
        self._detach_captures()
        optimized = None
        if optimizers is not None:
            optimized = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        self.training = GradientCapture(
            module, self.patterns, optimized, self.projection, refuse_unrecorded=self.strict, reads_graph=True
        )
        self.queries = self.training
        leaves_out_some = any(line.status == "excluded" for line in self.training.coverage.lines)
        if self.all_of_queries and leaves_out_some:
            self.queries = GradientCapture(
                module, ("*",), optimized, self.projection, refuse_unrecorded=False, reads_graph=True
            )
        self._captures = list(dict.fromkeys([self.training, self.queries]))
        for capture in self._captures:
            capture.attach()

    def follow(
        self,
        loop: TrainingLoop,
        optimizer: Optimizer,
        begins: Callable[[Optimizer], None],
        has_ended: Callable[[Optimizer], None],
    ) -> None:
        """Follow an optimizer's steps by hooks on it, which fire only for steps that are really taken.

        Args:
            begins: Called before a step that the loop doesn't announce.
            has_ended: Called after a step that was taken.
        """

        def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
            if loop.announces_step(closure):
                return
            if closure is not None:
                raise ValueError(
                    f"{self.who}: an optimizer of your own was stepped with a closure, whose backward pass can't be "
                    f"recorded. {loop.wording.step}"
                )
            with without_autocast(loop.device):
                begins(optimizer)

        def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            with torch.no_grad(), without_autocast(loop.device):
                has_ended(optimizer)

        self._handles.append(optimizer.register_step_pre_hook(before))
        self._handles.append(optimizer.register_step_post_hook(after))

    def detach(self) -> None:
        """Remove all hooks, so that module and optimizers are as before."""
        self._detach_captures()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _detach_captures(self) -> None:
        for capture in self._captures:
            capture.detach()
        self._captures.clear()


def is_compiled_anywhere(module: nn.Module) -> bool:
    """Whether the module, or a part of it, is compiled by ``torch.compile``."""
    by_lightning = getattr(module, "_compiler_ctx", None) is not None
    return by_lightning or any(is_compiled(submodule) for submodule in module.modules())


def refuse_batch_statistics(module: nn.Module, names: Collection[str], who: str) -> None:
    """Refuse layers that mix examples whenever they run, since it wouldn't help to leave out their own parameters.

    Args:
        names: The parameters that can't be covered.
        who: Whose message this is.

    Raises:
        ValueError: If some of them belong to layers that normalise by the statistics of the batch.
    """
    mixing = [
        (path, layer)
        for path, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and (layer.training or layer.running_mean is None)
        and any(f"{path}.{local}".lstrip(".") in names for local in layer._parameters)
    ]
    if not mixing:
        return
    path, layer = mixing[0]
    more = f", and {len(mixing) - 1} more," if len(mixing) > 1 else ""
    has_eval = all(layer.running_mean is not None for _, layer in mixing)
    remedy = "Put such layers into eval mode before training, or use" if has_eval else "Use"
    raise ValueError(
        f"{who}: layer {path!r} ({type(layer).__name__}){more} normalises by the statistics of its batch, so no "
        f"gradient is one example's alone. {remedy} GroupNorm or LayerNorm"
    )
