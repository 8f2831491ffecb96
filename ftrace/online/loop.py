"""The protocol between a traced run and the loop that trains the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

OnLoss = Callable[[Tensor, bool], None]


@dataclass(frozen=True)
class Wording:
    """How messages name what users of a loop can do.

    Args:
        backward: The call that takes the place of ``loss.backward()``.
        clip: How to clip gradients.
        step: What to step instead of an optimizer of one's own with a closure.
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
    """The loaders that training draws its batches from.

    Args:
        loaders: Those that are DataLoaders.
        are_all: Whether there are no others.
        restart: Whether shorter loaders begin again within an epoch.
    """

    loaders: Sequence[DataLoader] = ()
    are_all: bool = False
    restart: bool = False


class TrainingLoop(Protocol):
    """A training loop, as far as a traced run needs to know it.

    Lightning's is ``ftrace.callbacks.LightningLoop``, one written by hand ``ftrace.online.PlainLoop``.
    """

    @property
    def module(self) -> nn.Module:
        """The model under training, which losses of queries get as their first argument."""

    @property
    def optimizers(self) -> Sequence[Optimizer]:
        """All optimizers, in a fixed order."""

    @property
    def schedules(self) -> Sequence[Any]:
        """Learning-rate schedules, which a rehearsed step must leave as they are."""

    @property
    def is_manual(self) -> bool:
        """Whether the user's own code runs backward passes and steps optimizers (manual optimization).

        Otherwise the loop does both, and says when a step's gradient is complete, before it is clipped.
        """

    @property
    def batches_per_step(self) -> int:
        """Batches whose gradients are accumulated for a step; 1 under manual optimization."""

    @property
    def clip_norm(self) -> float:
        """Largest norm of a step's gradient; 0 if the loop doesn't clip."""

    @property
    def clips_itself(self) -> bool:
        """Whether the module clips by itself, so that the clip factor can only be measured after the step."""

    @property
    def zeroes_gradients_itself(self) -> bool:
        """Whether the module may set gradients to zero as soon as a step was taken."""

    @property
    def precision(self) -> str:
        """``"32-true"``, ``"64-true"``, or the name of a lower precision."""

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by before a backward pass; 1 without a loss scaler."""

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""

    @property
    def epoch(self) -> int:
        """The current epoch."""

    @property
    def batch_idx(self) -> int:
        """Index of the current batch in its epoch."""

    @property
    def device(self) -> torch.device:
        """Where the model and its batches are."""

    @property
    def train_loaders(self) -> TrainLoaders:
        """The loaders that training draws from; none where the loop doesn't know them."""

    @property
    def left_alone(self) -> tuple[type, ...]:
        """Classes whose instances a rehearsal neither looks into nor restores."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Packages, beside ours and torch, whose versions a manifest records."""

    @property
    def log_every_n_steps(self) -> int:
        """About how often :meth:`log` is called; 0: never."""

    @property
    def wording(self) -> Wording:
        """How messages name what users can do."""

    def announces_step(self, closure: Any) -> bool:
        """Whether the loop itself says that an optimizer is about to step, once this closure (or None) has run."""

    def query_loader(self) -> Any:
        """The loop's own queries, where the user names none; None if it has none."""

    def to_device(self, batch: Any) -> Any:
        """A batch as the model is given it: on its device, in the precision of inputs."""

    def forward_context(self) -> AbstractContextManager[Any]:
        """The precision that forward passes run in."""

    def rehearsing(self, on_loss: OnLoss) -> AbstractContextManager[Any]:
        """While active, :meth:`training_step` logs nothing, steps no optimizer, and runs no backward pass.

        Args:
            on_loss: Is given each loss that the step itself would differentiate, multiplied by the loss scale, and
                whether its graph is used again.
        """

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Run the training step on one batch.

        Returns:
            The loss as the loop would differentiate it: loss scale and accumulation included. None if there is none,
            or if the step runs its backward passes itself.
        """

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers where the user's own are logged, on process 0."""

    def tell(self, text: str) -> None:
        """Tell the user something that is no warning, once over all processes."""

    def facts(self) -> dict[str, Any]:
        """What a manifest says of the loop: clipping, accumulation, precision, strategy, hyperparameters."""
