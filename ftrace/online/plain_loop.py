"""A training loop written by hand, as a traced run knows it (:class:`ftrace.online.TrainingLoop`)."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ftrace.arguments import Count, Name, checked
from ftrace.gradients import OnLoss
from ftrace.online.loop import TrainLoaders, Wording
from ftrace.online.messages import tell
from ftrace.online.processes import num_processes

TrainingLoss = Callable[[Any, Any], Tensor]
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
PRECISIONS = ("32-true", "64-true", "bf16-true", "16-true", *_AUTOCAST)


@checked
class PlainLoop:
    """A loop that calls backward and steps its optimizers itself.

    Attributes are as :class:`ftrace.online.TrainingLoop` has them.

    Args:
        model: The model, or the DistributedDataParallel around it.
        training_loss: ``(model, batch) -> Tensor``: the loss of one batch.
        precision: As in :func:`ftrace.online.trace`.
        schedules: Learning-rate schedules.
        scaler: A ``torch.amp.GradScaler``, if there is one.
        step: Optimizer steps taken before.
    """

    is_manual = True
    repeats_backward = False  # a loss is differentiated once
    batches_per_step = 1
    clip_norm = 0.0
    clips_itself = False
    zeroes_gradients_itself = False
    log_every_n_steps = 0
    backward_scale = 1.0  # what backward multiplies the loss by
    left_alone: tuple[type, ...] = ()
    packages: tuple[str, ...] = ()
    train_loaders = TrainLoaders()
    wording = Wording(
        backward="run.backward(loss)",
        clip="torch.nn.utils.clip_grad_norm_ between run.backward(loss) and optimizer.step()",
        step="Call the closure before the step, and step without it",
    )

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        training_loss: TrainingLoss,
        precision: Name = "32-true",
        schedules: Sequence[Any] = (),
        scaler: Any = None,
        step: Count = 0,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {PRECISIONS}, found {precision!r}")
        self.model = model
        self.module: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
        self.optimizers = list(optimizers)
        self.training_loss = training_loss
        self.precision = precision
        self.schedules = list(schedules)
        self.scaler = scaler
        self.step = step
        self.epoch = 0
        self.batch_idx = 0
        self.scale = self.loss_scale  # what the loss of the current batch is multiplied by before its backward pass

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.module.parameters()).device

    @property
    def undistributed(self) -> Any:
        """The model without DistributedDataParallel around it, as rehearsals call it."""
        return self.module

    @property
    def loss_scale(self) -> float:
        """The factor by which the scaler multiplies the loss."""
        return 1.0 if self.scaler is None or not self.scaler.is_enabled() else float(self.scaler.get_scale())

    def gradient_scale(self, optimizer: Optimizer) -> float:
        """Return the factor that the scaler has told the optimizer to take out; 1 once gradients are unscaled."""
        scale = getattr(optimizer, "grad_scale", None)
        return 1.0 if scale is None else float(scale)

    def announces_step(self, closure: Any) -> bool:
        """False: only the optimizer's own hooks know."""
        return False

    def query_loader(self) -> Any:
        """None: there is no datamodule."""

    def describe(self) -> Any:
        """None: there is no datamodule."""

    def to_device(self, batch: Any) -> Any:
        """Move a batch's tensors to the model's device."""
        if isinstance(batch, Mapping):
            return {key: self.to_device(value) for key, value in batch.items()}
        if isinstance(batch, list | tuple) and not hasattr(batch, "_fields"):
            return type(batch)(self.to_device(value) for value in batch)
        return batch.to(self.device) if hasattr(batch, "to") else batch

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast, in mixed precision."""
        dtype = _AUTOCAST.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def require_known_autocast(self) -> None:
        """Refuse autocast that the queries' losses would be computed without."""
        if self.precision not in _AUTOCAST and torch.is_autocast_enabled(self.device.type):
            low = "16-mixed" if torch.get_autocast_dtype(self.device.type) == torch.float16 else "bf16-mixed"
            raise ValueError(
                f"run.loss: expected no torch.autocast around it with precision={self.precision!r}, found some. Pass "
                f"precision={low!r} to trace, so that the losses of queries are computed under it, too"
            )

    def compute_loss(self, batch: Any) -> Any:
        """Compute the training loss of a batch."""
        with self.forward_context():
            return self.training_loss(self.model, batch)

    def backward(self, loss: Tensor, **options: Any) -> None:
        """Run a backward pass."""
        loss.backward(**options)

    @contextmanager
    def rehearsing(self, on_loss: OnLoss) -> Iterator[None]:
        """Refuse optimizer steps; there is nothing else to switch off."""
        handle = register_optimizer_step_pre_hook(_refuse_step)
        try:
            with self.forward_context():
                yield
        finally:
            handle.remove()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Compute the training loss of a batch, scaled as in the last backward pass."""
        loss = self.training_loss(self.undistributed, batch)
        return loss * self.scale if isinstance(loss, Tensor) and loss.requires_grad else None

    def deletable_checkpoints(self) -> Sequence[Path]:
        """List none: a loop written by hand keeps checkpoints where it likes."""
        return []

    def handlers_of_signal(self, signum: int) -> Sequence[Any] | None:
        """Those of Python itself; a handler of the user's own is left to do what it does."""
        handler = signal.getsignal(signum)
        if handler == signal.SIG_DFL or (handler is signal.default_int_handler and num_processes() > 1):
            return [handler]
        return None

    def end_by_signal(self, signum: int) -> BaseException:
        """Make the end of the program, with the exit code that shells give a signal."""
        return SystemExit(128 + signum)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing: there is no logger."""

    def tell(self, text: str) -> None:
        """Print, on process 0."""
        tell(text)

    def facts(self) -> dict[str, Any]:
        """Describe the loop for a manifest."""
        return {"precision": self.precision, "strategy": type(self.model).__name__, "hyperparameters": {}}


def factor_between(loss: Tensor, last: Tensor) -> float | None:
    """Return the factor by which a loss was multiplied to make another one; None if that doesn't depend on it."""
    if loss is last:
        return 1.0
    (factor,) = torch.autograd.grad(loss, last, retain_graph=True, allow_unused=True)
    return None if factor is None else float(factor)


def _refuse_step(*args: Any) -> None:
    raise ValueError(
        "training_loss steps an optimizer, which would move weights while it is rehearsed. Step it in the loop, after "
        "run.backward(loss)"
    )
