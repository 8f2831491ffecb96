"""Lightning's training loop behind the interface of a traced run (:class:`ftrace.online.TrainingLoop`)."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from ftrace.gradients import OnLoss, UnreadableError
from ftrace.launched_processes import handlers_without_lightning
from ftrace.online import SelfCheckError, TrainLoaders, Wording
from ftrace.online.undisturbed.replaced import replaced
from ftrace.shown_text import plain_lines


class LightningLoop:
    """The loop of one ``trainer.fit``; its attributes are those of :class:`ftrace.online.TrainingLoop`.

    Args:
        module: The module that it trains.
    """

    left_alone: tuple[type, ...] = (Trainer, Callback, LightningDataModule)
    packages = ("lightning",)
    wording = Wording(
        backward="self.manual_backward(loss)",
        clip="Trainer(gradient_clip_val=...)",
        step="Step the one that self.optimizers() gives, or call the closure before the step",
        unfreeze=", such as in on_train_epoch_start",
        queries=" or a datamodule with query_dataloader()",
    )

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.trainer = trainer
        self.module = module

    # What is trained, and where training is

    @property
    def optimizers(self) -> Sequence[Optimizer]:
        """All optimizers of the trainer."""
        return self.trainer.optimizers

    @property
    def schedules(self) -> Sequence[Any]:
        """All learning-rate schedules of the trainer."""
        return [config.scheduler for config in self.trainer.lr_scheduler_configs]

    @property
    def step(self) -> int:
        """The number of optimizer steps taken so far."""
        return self.trainer.global_step

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self.trainer.current_epoch

    @property
    def batch_idx(self) -> int:
        """The index of the current batch in its epoch."""
        return self.trainer.fit_loop.batch_idx

    @property
    def device(self) -> torch.device:
        """The device of the module."""
        return self.module.device

    @property
    def train_loaders(self) -> TrainLoaders:
        """The training loaders."""
        combined = self.trainer.fit_loop._combined_loader
        if combined is None:
            return TrainLoaders()
        loaders = [loader for loader in combined.flattened if isinstance(loader, DataLoader)]
        are_all, restart = len(loaders) == len(combined.flattened), combined._mode == "max_size_cycle"
        return TrainLoaders(loaders, are_all, restart, *self._planned())

    def _planned(self) -> tuple[float, float]:
        """Return the number of epochs and of batches at most."""
        fit = self.trainer.fit_loop
        of_epoch = float(self.trainer.num_training_batches)
        epochs = math.inf if fit.max_epochs in (None, -1) else float(fit.max_epochs or 0)
        batches = epochs * of_epoch if epochs and of_epoch else 0.0
        if self.trainer.max_steps >= 0 and not self.is_manual:  # steps of manual optimization are the user's own
            batches = min(batches, float(self.trainer.max_steps * self.batches_per_step))
        if 0 < of_epoch < math.inf and batches < math.inf:
            epochs = min(epochs, math.ceil(batches / of_epoch))
        return epochs, batches

    # How it steps

    @property
    def is_manual(self) -> bool:
        """Whether the module uses manual optimization."""
        return not self.module.automatic_optimization

    @property
    def repeats_backward(self) -> bool:
        """Whether the module runs backward passes by itself, which may be several."""
        return self.is_manual or is_overridden("backward", self.module, LightningModule)

    @property
    def batches_per_step(self) -> int:
        """The number of batches whose gradients are accumulated for a step."""
        return self.trainer.accumulate_grad_batches

    @property
    def clip_norm(self) -> float:
        """The norm to which a step's gradient is clipped; 0 if it isn't clipped."""
        return float(self.trainer.gradient_clip_val or 0)

    @property
    def clips_itself(self) -> bool:
        """Whether the module overrides ``configure_gradient_clipping``."""
        return not self.is_manual and is_overridden("configure_gradient_clipping", self.module, LightningModule)

    @property
    def zeroes_gradients_itself(self) -> bool:
        """Whether the module may set gradients to zero right after a step."""
        hooks = ("optimizer_step", "optimizer_zero_grad")
        return any(is_overridden(hook, self.module, LightningModule) for hook in hooks)

    @property
    def loss_scale(self) -> float:
        """The factor by which the loss is multiplied before the backward pass."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return float(scaler.get_scale()) if scaler is not None else 1.0

    @property
    def precision(self) -> str:
        """The trainer's precision."""
        return str(self.trainer.precision)

    def gradient_scale(self, optimizer: Optimizer) -> float:
        """Return the loss scale for optimizers whose own step takes it out; 1 for all others."""
        return self.loss_scale if getattr(optimizer, "_step_supports_amp_scaling", False) else 1.0

    def announces_step(self, closure: Any) -> bool:
        """Whether Lightning calls ``on_before_optimizer_step`` for this step, once its closure has run."""
        is_from_lightning = getattr(getattr(closure, "func", None), "__name__", "") == "_wrap_closure"
        return not self.is_manual or is_from_lightning

    # Its own data

    def query_loader(self) -> Any:
        """Return the datamodule's ``query_dataloader()``; None if it has none."""
        make = getattr(getattr(self.trainer, "datamodule", None), "query_dataloader", None)
        return None if make is None else make()

    def describe(self) -> Any:
        """Return what the datamodule's ``describe()`` returns; None if it has none."""
        describe = getattr(getattr(self.trainer, "datamodule", None), "describe", None)
        return None if describe is None else describe()

    def to_device(self, batch: Any) -> Any:
        """Convert a batch as the strategy and the precision plugin do before the module gets it."""
        batch = self.trainer.precision_plugin.convert_input(batch)
        return self.trainer.strategy.batch_to_device(batch, self.device, dataloader_idx=0)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the precision plugin's context of forward passes."""
        return self.trainer.precision_plugin.forward_context()

    # Rehearsals

    @contextmanager
    def rehearsing(self, on_loss: OnLoss) -> Iterator[None]:
        """Let the training step log nothing, step no optimizer and run no backward pass while active."""
        with _unlogged(self, on_loss), self.trainer.precision_plugin.train_step_context():
            yield

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Run ``on_train_batch_start`` and ``training_step`` of the module."""
        try:
            output = self._training_step(batch, batch_idx)
        except (UnreadableError, SelfCheckError):
            raise
        except Exception as error:  # the user's step may raise anything
            error.add_note(
                "This was raised while the training step was rehearsed, before on_train_batch_start of the callbacks "
                "that come after this one. If these prepare the step, put this one last: Trainer(callbacks=[..., this])"
            )
            raise
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if self.is_manual or not isinstance(loss, Tensor) or not loss.requires_grad:
            return None
        return loss * self.loss_scale / self.batches_per_step

    def _training_step(self, batch: Any, batch_idx: int) -> Any:
        prepares = is_overridden("on_train_batch_start", self.module, LightningModule)
        if prepares and self.module.on_train_batch_start(batch, batch_idx) == -1:  # which means to skip this batch
            return None
        # Arguments are passed by position, as Lightning does, since a step may give them other names.
        takes_index = is_param_in_hook_signature(self.module.training_step, "batch_idx", min_args=2)
        return self.module.training_step(*([batch, batch_idx] if takes_index else [batch]))

    # What users see

    @property
    def log_every_n_steps(self) -> int:
        """The number of steps from one log of the trainer to the next."""
        return getattr(self.trainer, "log_every_n_steps", 0)

    def deletable_checkpoints(self) -> Sequence[Path]:
        """List those in the folders of ModelCheckpoints, unless these keep all that they save."""
        found: list[Path] = []
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_top_k != -1 and callback.dirpath:
                found += Path(callback.dirpath).rglob(f"*{callback.FILE_EXTENSION}")
        return found

    def handlers_of_signal(self, signum: int) -> Sequence[Any] | None:
        """Those that the user has set; Lightning's own runs a collective within the handler, which other ones meet."""
        if self.trainer.world_size == 1:
            return None
        handlers = handlers_without_lightning(self.trainer, signum)
        if signum == signal.SIGINT:  # what a user's own handler does is the user's affair
            is_known = handlers[0] is signal.default_int_handler or str(handlers[0].__module__).startswith("ftrace.")
            return handlers if is_known else None
        return handlers

    def end_by_signal(self, signum: int) -> BaseException:
        """Make Lightning's own exception, with the exit code that shells give a signal."""
        return KeyboardInterrupt() if signum == signal.SIGINT else SIGTERMException(128 + signum)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers with the trainer's loggers."""
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(metrics), step=step)

    def tell(self, text: str) -> None:
        """Show the user a message, on process 0."""
        rank_zero_info(plain_lines(text))

    def facts(self) -> dict[str, Any]:
        """Describe the loop for a manifest."""
        return {
            "gradient_clip_val": self.trainer.gradient_clip_val,
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
            "precision": self.precision,
            "strategy": type(self.trainer.strategy).__name__,
            "hyperparameters": dict(self.module.hparams),
        }


def refuse_unsupported_loop(trainer: Trainer, who: str) -> None:
    """Refuse training loops in which scores would be wrong.

    Raises:
        ValueError: If the loop isn't supported; with the reason and the remedy.
    """
    for problem in _problems(trainer):
        raise ValueError(f"{who}: {problem}")


def _problems(trainer: Trainer) -> Iterator[str]:
    strategy = trainer.strategy
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
        yield (
            f"expected one device, DDP or ModelParallelStrategy, found {type(strategy).__name__}, whose gradients "
            'can\'t be read. Set Trainer(strategy="ddp"), or ModelParallelStrategy for sharded weights.'
        )
    elif isinstance(strategy, ModelParallelStrategy) and strategy.device_mesh["tensor_parallel"].size() > 1:
        yield "tensor parallelism splits layers, whose inputs can't be read. Set tensor_parallel_size=1."
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
        yield "LBFGS evaluates a batch several times a step, so a step is no sum over examples. Use another optimizer."
    if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
        yield 'clipping by value is not linear in the gradient. Set Trainer(gradient_clip_algorithm="norm").'


def refuse_loop_without_index(trainer: Trainer, module: LightningModule, who: str) -> None:
    """Refuse training loops in which an index can't be written.

    Raises:
        ValueError: If the loop isn't supported; with the reason and the remedy.
    """
    refuse_unsupported_loop(trainer, who)
    if not module.automatic_optimization or len(trainer.optimizers) != 1:
        raise ValueError(
            f"{who}: expected automatic optimization with one optimizer, found "
            f"{'automatic' if module.automatic_optimization else 'manual'} optimization with "
            f"{len(trainer.optimizers)}. Write the index of a snapshot afterwards: ftrace index"
        )
    if isinstance(trainer.strategy, ModelParallelStrategy):
        raise ValueError(
            f"{who}: expected one device or DDP, found ModelParallelStrategy, whose weights are sharded. Write the "
            "index of a snapshot afterwards: ftrace index"
        )


@contextmanager
def _unlogged(loop: LightningLoop, on_loss: OnLoss) -> Iterator[None]:
    """Let the module log nothing and step no optimizer while active."""
    trainer, module = loop.trainer, loop.module

    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    others: dict[str, Any] = {"log": nothing, "log_dict": nothing, "print": nothing}
    if loop.is_manual:
        optimizers = type(module).optimizers.__get__(module)
        schedulers = type(module).lr_schedulers.__get__(module)
        others |= {
            "manual_backward": lambda loss, *args, **kwargs: on_loss(
                loss * loop.loss_scale, bool(kwargs.get("retain_graph"))
            ),
            "optimizers": lambda use_pl_optimizer=True: _without_steps(optimizers(use_pl_optimizer)),
            "lr_schedulers": lambda: _without_steps(schedulers()),
            "clip_gradients": nothing,
        }
    loggers, stops = trainer.loggers, trainer.should_stop
    handle = register_optimizer_step_pre_hook(_refuse_step)
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        with replaced(module, others):
            yield
    finally:
        handle.remove()
        trainer.loggers, trainer.should_stop = loggers, stops


def _refuse_step(*args: Any) -> None:
    raise ValueError(
        "the training step steps an optimizer that self.optimizers() doesn't give, which would move weights while the "
        "step is rehearsed. Return it from configure_optimizers, and step what self.optimizers() gives"
    )


def _without_steps(optimizers: Any) -> Any:
    if isinstance(optimizers, list | tuple):
        return [_WithoutSteps(optimizer) for optimizer in optimizers]
    return None if optimizers is None else _WithoutSteps(optimizers)


class _WithoutSteps:
    """An optimizer or schedule that can be called as usual but doesn't step."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Run the closure, if there is one."""
        closure = kwargs.get("closure", args[0] if args else None)
        if callable(closure):
            closure()

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: there are no gradients."""
