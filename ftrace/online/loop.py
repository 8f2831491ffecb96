"""The protocol between a traced run and the loop that trains the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ftrace.gradients import OnLoss


@dataclass(frozen=True)
class Wording:
    """The words by which messages say what users of a loop can do.

    Args:
        backward: The call that replaces ``loss.backward()``.
        clip: The way to clip gradients.
        step: The remedy for an optimizer that is stepped with a closure.
        unfreeze: Where parameters may be unfrozen, such as in a hook.
        queries: Where queries may come from, beside the argument ``queries``.
    """

    backward: str
    clip: str
    step: str
    unfreeze: str = ""
    queries: str = ""


@dataclass(frozen=True)
class TrainLoaders:
    """The loaders from which training draws its batches.

    Args:
        loaders: The DataLoaders among them.
        are_all: Whether there are no others.
        restart: Whether shorter loaders start again within an epoch.
        epochs: The number of epochs at most; infinity if it isn't known.
        batches: The number of batches in all epochs together at most, likewise.
    """

    loaders: Sequence[DataLoader] = ()
    are_all: bool = False
    restart: bool = False
    epochs: float = math.inf
    batches: float = math.inf


class TrainingLoop(Protocol):
    """The interface of a training loop to a traced run.

    Lightning's loop is ``ftrace.callbacks.LightningLoop``, a user's own PyTorch loop ``ftrace.online.PlainLoop``, and
    with Lightning Fabric ``ftrace.online.FabricLoop``.
    """

    @property
    def module(self) -> nn.Module:
        """The model that is trained, and the first argument of the queries' losses."""

    @property
    def optimizers(self) -> Sequence[Optimizer]:
        """All optimizers, in a fixed order."""

    @property
    def schedules(self) -> Sequence[Any]:
        """Learning-rate schedules, which a rehearsed step must not change."""

    @property
    def is_manual(self) -> bool:
        """Whether the user's own code runs backward passes and steps optimizers (manual optimization).

        Otherwise the loop does both, and announces when a step's gradient is complete, before it is clipped.
        """

    @property
    def repeats_backward(self) -> bool:
        """Whether several backward passes may follow a batch, such as several through one graph, and steps between."""

    @property
    def batches_per_step(self) -> int:
        """The number of batches whose gradients are accumulated for a step; 1 under manual optimization."""

    @property
    def clip_norm(self) -> float:
        """The norm to which the loop clips a step's gradient; 0 if it doesn't clip."""

    @property
    def clips_itself(self) -> bool:
        """Whether the module clips by itself, so that the clip factor can only be measured after the step."""

    @property
    def zeroes_gradients_itself(self) -> bool:
        """Whether the module may set gradients to zero right after a step."""

    @property
    def precision(self) -> str:
        """``"32-true"``, ``"64-true"``, or the name of a lower precision."""

    @property
    def loss_scale(self) -> float:
        """The factor by which the loss is multiplied before a backward pass; 1 without a loss scaler."""

    @property
    def step(self) -> int:
        """The number of optimizer steps taken so far."""

    @property
    def epoch(self) -> int:
        """The current epoch."""

    @property
    def batch_idx(self) -> int:
        """The index of the current batch in its epoch."""

    @property
    def device(self) -> torch.device:
        """The device of the model and its batches."""

    @property
    def train_loaders(self) -> TrainLoaders:
        """The loaders from which training draws; none if the loop doesn't know them."""

    @property
    def left_alone(self) -> tuple[type, ...]:
        """Classes whose instances a rehearsal neither follows nor restores."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Packages, beside ftrace and torch, whose versions a manifest records."""

    @property
    def log_every_n_steps(self) -> int:
        """The approximate number of steps from one call of :meth:`log` to the next; 0: never."""

    @property
    def wording(self) -> Wording:
        """The words by which messages say what users can do."""

    def gradient_scale(self, optimizer: Optimizer) -> float:
        """Return the loss scale that is still in an optimizer's gradients right before its step; 1 if there is none.

        Fused optimizers take it out in their own step.
        """

    def announces_step(self, closure: Any) -> bool:
        """Whether the loop announces that an optimizer is about to step, once its closure has run.

        Args:
            closure: The argument of ``optimizer.step``; None without one.
        """

    def query_loader(self) -> Any:
        """Return the loop's own queries, for users who name none; None if it has none."""

    def describe(self) -> Any:
        """Return texts of the loop's own data, ``(examples, queries)``, for users who give none; None if it has none.

        Called on process 0, when a store or an index is written.
        """

    def to_device(self, batch: Any) -> Any:
        """Convert a batch to the form that the model is given: on its device, in the precision of inputs."""

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the context in which forward passes run, such as autocast."""

    def rehearsing(self, on_loss: OnLoss) -> AbstractContextManager[Any]:
        """Let :meth:`training_step` log nothing, step no optimizer and run no backward pass while active.

        Args:
            on_loss: Called with each loss that the step itself would differentiate, multiplied by the loss scale, and
                whether its graph is used again.
        """

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Run the training step on one batch.

        Returns:
            The loss as the loop would differentiate it, loss scale and accumulation included; None if there is none,
            or if the step runs its backward passes itself.
        """

    def deletable_checkpoints(self) -> Sequence[Path]:
        """List the checkpoints that there are and that the loop itself may delete."""

    def handlers_of_signal(self, signum: int) -> Sequence[Any] | None:
        """Return the handlers that a signal has without those of the loop itself.

        Called when training begins. None: the signal is none of a traced run's business.
        """

    def end_by_signal(self, signum: int) -> BaseException:
        """Make the exception by which training ends at a signal, if no handler raises one."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers with the user's loggers; called on process 0."""

    def tell(self, text: str) -> None:
        """Show the user a message that is no warning, once over all processes."""

    def facts(self) -> dict[str, Any]:
        """Describe the loop for a manifest: clipping, accumulation, precision, strategy, hyperparameters."""
