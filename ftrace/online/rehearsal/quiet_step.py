"""The training step in a form that can be run any number of times without leaving a trace."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftrace.gradients import ExchangeError, OnLoss, UnreadableError
from ftrace.online.batches import batches_in
from ftrace.online.checks.failures import SelfCheckError
from ftrace.online.loop import TrainingLoop
from ftrace.online.processes import gather_objects
from ftrace.online.rehearsal.exchange import Inputs, exchanged
from ftrace.online.undisturbed.kept_state import KeptState
from ftrace.online.undisturbed.modes import without_autocast, without_reentrant_checkpointing
from ftrace.online.undisturbed.random_state import RandomState, isolated_random_state

_DONE, _FORWARD, _BACKWARD = range(3)


class QuietStep:
    """A training step on one batch that can be run any time and leaves no trace.

    Afterwards, weights, gradients, buffers, whatever else the module keeps, and random state are as before; nothing was
    logged or printed. What a step changes elsewhere (files, variables of a closure) changes with each run.

    Args:
        batch_idx: Its index.
        inputs: The inputs of the batch, one entry for each dataloader.
        id_key: The key of the examples' ids in the batch.
        begins: The random state with which the real step begins.
        requires_grad: Whether each parameter requires a gradient when the real step begins, since manual optimization
            may switch some off during the step; default: as they are.
        loss_factor: What losses are multiplied by, beside the loss scale.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        batch: Any,
        batch_idx: int,
        inputs: Sequence[Inputs],
        id_key: str | int,
        begins: RandomState,
        requires_grad: Sequence[tuple[nn.Parameter, bool]] = (),
        loss_factor: float = 1.0,
    ) -> None:
        self.loop = loop
        self.batch = batch
        self.batch_idx = batch_idx
        self.inputs = list(inputs)
        self.id_key = id_key
        self.begins = begins
        self.requires_grad = requires_grad
        self.loss_factor = loss_factor

    def __call__(
        self,
        on_loss: OnLoss | None,
        *,
        sources: Sequence[int] | None = None,
        fresh: bool = False,
        stirred: bool = False,
    ) -> None:
        """Run the step; the arguments are those of :class:`ftrace.gradients.steps.Step`.

        All processes must run it equally often, since it may call collectives of its own.
        """
        if _greatest(_FORWARD if on_loss is None else _BACKWARD) == _BACKWARD and on_loss is None:
            on_loss = self._differentiate
        self._run(on_loss, sources, fresh, stirred)

    def finish(self) -> None:
        """Run the step, without use for its results, as long as other processes run theirs."""
        while kind := _greatest(_DONE):
            self._run(self._differentiate if kind == _BACKWARD else None, None, False, False)

    def _differentiate(self, loss: Tensor, keeps: bool) -> None:
        wanted = [parameter for parameter in self.loop.module.parameters() if parameter.requires_grad]
        torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=keeps or None)

    def _run(self, on_loss: OnLoss | None, sources: Sequence[int] | None, fresh: bool, stirred: bool) -> None:
        loop, given = self.loop, on_loss or _ignore

        def on_loss_in_full_precision(loss: Tensor, keeps: bool) -> None:
            with without_autocast(loop.device):
                given(loss if self.loss_factor == 1 else loss * self.loss_factor, keeps)

        with ExitStack() as stack:
            stack.enter_context(isolated_random_state())
            stack.enter_context(_sharded(loop.module))
            kept = KeptState(loop.module, *loop.optimizers, *loop.schedules, always=True, left_alone=loop.left_alone)
            stack.enter_context(kept.in_place())
            stack.enter_context(_untrained(loop.module, self.requires_grad))
            stack.enter_context(loop.rehearsing(on_loss_in_full_precision))
            stack.enter_context(redirect_stdout(io.StringIO()))
            stack.enter_context(without_reentrant_checkpointing())
            stack.enter_context(torch.enable_grad())
            if fresh:
                _seed(self.batch_idx + 1)
            else:
                self.begins.put_back()
            loss = self._training_step(sources, stirred)
            if loss is not None:
                on_loss_in_full_precision(loss, False)
            elif any(parameter.grad is not None for parameter in loop.module.parameters()):
                raise ValueError(
                    "the training step runs a backward pass that the training loop doesn't run. Call "
                    f"{loop.wording.backward} instead of loss.backward()"
                )

    def _training_step(self, sources: Sequence[int] | None, stirred: bool) -> Tensor | None:
        batch = self._exchanged(sources, stirred)
        try:
            return self.loop.training_step(batch, self.batch_idx)
        except (UnreadableError, SelfCheckError):
            raise
        except Exception as error:  # whatever it is: the step is the user's
            if sources is None and not stirred:
                raise
            raise ExchangeError(f"{type(error).__name__}: {error}") from error

    def _exchanged(self, sources: Sequence[int] | None, stirred: bool) -> Any:
        several = batches_in(self.batch, self.id_key)
        if several is None:
            return exchanged(self.batch, self.inputs[0], sources, stirred=stirred)
        first, made = 0, {}
        for (key, of_loader), inputs in zip(several.items(), self.inputs, strict=True):
            sources_of_loader = None
            if sources is not None:
                of_batch = sources[first : first + inputs.count]
                sources_of_loader = [source - first if source >= 0 else -1 for source in of_batch]
            made[key] = exchanged(of_loader, inputs, sources_of_loader, stirred=stirred)
            first += inputs.count
        if isinstance(self.batch, Mapping):
            return {**self.batch, **made}
        return type(self.batch)([made.get(index, of_loader) for index, of_loader in enumerate(self.batch)])


def _ignore(loss: Tensor, keeps: bool) -> None:
    return None


def _greatest(kind: int) -> int:
    """Return the maximum over all processes."""
    return max(gather_objects(kind))


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def _sharded(module: nn.Module) -> Iterator[None]:
    """Shard weights again, before and after: a forward pass without a backward pass leaves them gathered."""
    sharded = [submodule for submodule in module.modules() if callable(getattr(submodule, "reshard", None))]
    for submodule in sharded:
        submodule.reshard()  # type: ignore[operator]
    try:
        yield
    finally:
        for submodule in sharded:
            submodule.reshard()  # type: ignore[operator]


@contextmanager
def _untrained(module: nn.Module, requires_grad: Sequence[tuple[nn.Parameter, bool]]) -> Iterator[None]:
    """Set aside the gradients that training has accumulated, and set ``requires_grad`` as when the real step began."""
    kept = [(parameter, parameter.grad, parameter.requires_grad) for parameter in module.parameters()]
    for parameter, _, _ in kept:
        parameter.grad = None
    for parameter, required in requires_grad:
        parameter.requires_grad_(required)
    try:
        yield
    finally:
        for parameter, grad, required in kept:
            parameter.requires_grad_(required)
            parameter.grad = grad
