"""A module's training step, run as often as one likes without leaving a trace."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ftrace.gradients import ExchangeError, UnreadableError
from ftrace.online.batches import batches_in
from ftrace.online.checks.self_check import SelfCheckError
from ftrace.online.processes import gather_objects
from ftrace.online.rehearsal.exchange import Inputs, exchanged
from ftrace.online.restore.kept_state import KeptState
from ftrace.online.restore.random_state import RandomState
from ftrace.online.training_loop import loss_scale, without_reentrant_checkpointing

OnLoss = Callable[[Tensor, bool], None]
_DONE, _FORWARD, _BACKWARD = range(3)


class QuietStep:
    """Runs the training step of a module on one batch, and its ``on_train_batch_start`` before it.

    Weights, gradients, buffers, what the module keeps, random state, logs and printed text are as they were afterwards.
    What a step changes elsewhere (files, variables of a closure) it changes once more.

    Args:
        trainer: The trainer.
        pl_module: The module.
        batch: The batch.
        batch_idx: Its index.
        inputs: What the batch holds, of each dataloader's.
        id_key: The batch's key of the examples' ids.
        begins: Random state that the real step begins with.
        requires_grad: Of parameters, as the real step begins; default: as they are. A step by hand may switch some off.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        inputs: Sequence[Inputs],
        id_key: str,
        begins: RandomState,
        requires_grad: Sequence[tuple[nn.Parameter, bool]] = (),
    ) -> None:
        self.trainer = trainer
        self.pl_module = pl_module
        self.batch = batch
        self.batch_idx = batch_idx
        self.inputs = list(inputs)
        self.id_key = id_key
        self.begins = begins
        self.requires_grad = requires_grad

    def __call__(
        self,
        on_loss: OnLoss | None,
        *,
        sources: Sequence[int] | None = None,
        fresh: bool = False,
        stirred: bool = False,
    ) -> None:
        """Run the step; arguments as :class:`ftrace.gradients.steps.Step` has them.

        All processes must run it as often as each other, since it may have collectives of its own.
        """
        if _greatest(_FORWARD if on_loss is None else _BACKWARD) == _BACKWARD and on_loss is None:
            on_loss = self._differentiate
        self._run(on_loss, sources, fresh, stirred)

    def finish(self) -> None:
        """Run the step for nothing, as long as other processes need theirs."""
        while kind := _greatest(_DONE):
            self._run(self._differentiate if kind == _BACKWARD else None, None, False, False)

    def _differentiate(self, loss: Tensor, keeps: bool) -> None:
        wanted = [parameter for parameter in self.pl_module.parameters() if parameter.requires_grad]
        torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=keeps or None)

    def _run(self, on_loss: OnLoss | None, sources: Sequence[int] | None, fresh: bool, stirred: bool) -> None:
        on_loss = on_loss or _ignore
        with ExitStack() as stack:
            stack.enter_context(isolate_rng())
            stack.enter_context(_sharded(self.pl_module))
            schedules = [one.scheduler for one in self.trainer.lr_scheduler_configs]
            kept = KeptState(self.pl_module, *self.trainer.optimizers, *schedules, always=True)
            stack.enter_context(kept.in_place())
            stack.enter_context(_untrained(self.pl_module, self.requires_grad))
            stack.enter_context(_unlogged(self.trainer, self.pl_module, on_loss))
            stack.enter_context(redirect_stdout(io.StringIO()))
            stack.enter_context(without_reentrant_checkpointing())
            stack.enter_context(self.trainer.precision_plugin.train_step_context())
            stack.enter_context(torch.enable_grad())
            if fresh:
                _seed(self.batch_idx + 1)
            else:
                self.begins.put_back()
            output = self._training_step(sources, stirred)
            if self.pl_module.automatic_optimization:
                loss = output.get("loss") if isinstance(output, Mapping) else output
                if isinstance(loss, Tensor) and loss.requires_grad:
                    on_loss(loss * loss_scale(self.trainer) / self.trainer.accumulate_grad_batches, False)
            elif any(parameter.grad is not None for parameter in self.pl_module.parameters()):
                raise ValueError(
                    "the training step runs a backward pass that nothing was told of. Call self.manual_backward(loss) "
                    "instead of loss.backward()"
                )

    def _training_step(self, sources: Sequence[int] | None, stirred: bool) -> Any:
        module = self.pl_module
        batch = self._exchanged(sources, stirred)
        try:
            prepares = is_overridden("on_train_batch_start", module, LightningModule)
            if prepares and module.on_train_batch_start(batch, self.batch_idx) == -1:  # it leaves this batch out
                return None
            # By position, as Lightning does: a step may name its arguments as it likes.
            takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
            return module.training_step(*([batch, self.batch_idx] if takes_index else [batch]))
        except (UnreadableError, SelfCheckError):
            raise
        except Exception as error:  # whatever it is: the step is somebody else's
            if sources is None and not stirred:
                error.add_note(
                    "This was raised while the training step was rehearsed, before on_train_batch_start of the "
                    "callbacks behind this one. If these prepare the step, put this one last: "
                    "Trainer(callbacks=[..., this])"
                )
                raise
            raise ExchangeError(f"{type(error).__name__}: {error}") from error

    def _exchanged(self, sources: Sequence[int] | None, stirred: bool) -> Any:
        several = batches_in(self.batch, self.id_key)
        if several is None:
            return exchanged(self.batch, self.inputs[0], sources, stirred=stirred)
        first, made = 0, {}
        for (place, own), inputs in zip(several.items(), self.inputs, strict=True):
            of_own = None
            if sources is not None:
                of_own = [source - first if source >= 0 else -1 for source in sources[first : first + inputs.count]]
            made[place] = exchanged(own, inputs, of_own, stirred=stirred)
            first += inputs.count
        if isinstance(self.batch, Mapping):
            return {**self.batch, **made}
        return type(self.batch)([made.get(place, own) for place, own in enumerate(self.batch)])


def _ignore(loss: Tensor, keeps: bool) -> None:
    return None


def _greatest(kind: int) -> int:
    """Over all processes."""
    return max(gather_objects(kind))


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def _sharded(module: nn.Module) -> Iterator[None]:
    """Weights that are sharded over processes are so before and after: a forward pass alone leaves them gathered."""
    sharded = [one for one in module.modules() if callable(getattr(one, "reshard", None))]
    for one in sharded:
        one.reshard()  # type: ignore[operator]
    try:
        yield
    finally:
        for one in sharded:
            one.reshard()  # type: ignore[operator]


@contextmanager
def _untrained(module: nn.Module, requires_grad: Sequence[tuple[nn.Parameter, bool]]) -> Iterator[None]:
    """Gradients that training has gathered are out of reach, and what needs some is as when the step began."""
    kept = [(parameter, parameter.grad, parameter.requires_grad) for parameter in module.parameters()]
    for parameter, _, _ in kept:
        parameter.grad = None
    for parameter, own in requires_grad:
        parameter.requires_grad_(own)
    try:
        yield
    finally:
        for parameter, grad, own in kept:
            parameter.requires_grad_(own)
            parameter.grad = grad


@contextmanager
def _unlogged(trainer: Trainer, pl_module: LightningModule, on_loss: OnLoss) -> Iterator[None]:
    """Nothing is logged, and no optimizer steps."""

    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    replaced: dict[str, Any] = {"log": nothing, "log_dict": nothing, "print": nothing}
    if not pl_module.automatic_optimization:
        make = type(pl_module).optimizers.__get__(pl_module)
        schedulers = type(pl_module).lr_schedulers.__get__(pl_module)
        replaced |= {
            "manual_backward": lambda loss, *args, **kwargs: on_loss(
                loss * loss_scale(trainer), bool(kwargs.get("retain_graph"))
            ),
            "optimizers": lambda use_pl_optimizer=True: _still(make(use_pl_optimizer)),
            "lr_schedulers": lambda: _still(schedulers()),
            "clip_gradients": nothing,
        }
    loggers, stops = trainer.loggers, trainer.should_stop
    before = {name: pl_module.__dict__[name] for name in replaced if name in pl_module.__dict__}
    handle = register_optimizer_step_pre_hook(_refuse_step)
    pl_module.__dict__.update(replaced)
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        yield
    finally:
        handle.remove()
        trainer.loggers, trainer.should_stop = loggers, stops
        for name in replaced:
            pl_module.__dict__.pop(name, None)
        pl_module.__dict__.update(before)


def _refuse_step(*args: Any) -> None:
    raise ValueError(
        "the training step steps an optimizer that self.optimizers() doesn't give, which would move weights while the "
        "step is rehearsed. Return it from configure_optimizers, and step what self.optimizers() gives"
    )


def _still(found: Any) -> Any:
    if isinstance(found, list | tuple):
        return [_Still(one) for one in found]
    return None if found is None else _Still(found)


class _Still:
    """An optimizer or a schedule that doesn't step."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Run the closure, if there is one."""
        closure = kwargs.get("closure", args[0] if args else None)
        if callable(closure):
            closure()

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: there are no gradients."""
