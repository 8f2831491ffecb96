"""A training loop with Lightning Fabric, as a traced run knows it (:class:`ftrace.online.TrainingLoop`).

Fabric's objects are known by their names and attributes, since this part imports no Lightning; they are the same in the
packages ``lightning`` and ``lightning_fabric``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from ftrace.arguments import Count, checked
from ftrace.gradients import OnLoss
from ftrace.online.loop import Wording
from ftrace.online.plain_loop import PRECISIONS, PlainLoop, TrainingLoss
from ftrace.online.queries.query_losses import READY_MADE, QueryLosses, find_query_learned, find_query_losses
from ftrace.online.undisturbed.replaced import replaced

_SHARDED = "ModelParallelStrategy"
_STRATEGIES = {"SingleDeviceStrategy", "DDPStrategy", _SHARDED}
_LOG_EVERY_N_STEPS = 50  # as Lightning's Trainer


@checked
class FabricLoop(PlainLoop):
    """A loop whose model and optimizers ``fabric.setup`` has set up.

    Attributes are as :class:`ftrace.online.TrainingLoop` has them.

    Args:
        fabric: The ``lightning.fabric.Fabric``.
        model: The model, as ``fabric.setup`` has returned it.
        optimizers: The optimizers, as ``fabric.setup`` has returned them, or those inside.
        training_loss: ``(model, batch) -> Tensor``: the loss of one batch.
        schedules: Learning-rate schedules.
        step: Optimizer steps taken before.

    Raises:
        ValueError: If something isn't Fabric's, or the strategy or precision isn't supported.
    """

    wording = Wording(
        backward="run.backward(loss), which calls fabric.backward(loss)",
        clip="fabric.clip_gradients(model, optimizer, max_norm=...) between run.backward(loss) and optimizer.step()",
        step="Call the closure before the step, and step without it",
    )

    def __init__(
        self,
        fabric: Any,
        model: nn.Module,
        optimizers: Sequence[Any],
        training_loss: TrainingLoss,
        schedules: Sequence[Any] = (),
        step: Count = 0,
    ) -> None:
        _require_supported(fabric, model)
        plugin = fabric.strategy.precision
        inner = [optimizer.optimizer if is_of_fabric(optimizer) else optimizer for optimizer in optimizers]
        scaler = getattr(plugin, "scaler", None)
        super().__init__(model, inner, training_loss, str(plugin.precision), schedules, scaler, step)
        self.fabric = fabric
        self.plugin = plugin
        self.module = model.module  # type: ignore[assignment]
        self._undistributed = _undistributed(model)
        self.left_alone = (type(fabric),)
        fabric_class = next(kind for kind in type(fabric).__mro__ if kind.__name__ == "Fabric")
        self.packages = (fabric_class.__module__.partition(".")[0],)

    @property
    def undistributed(self) -> Any:
        """The model as ``fabric.setup`` returns it, but with nothing between, such as DistributedDataParallel."""
        return self._undistributed

    @property
    def backward_scale(self) -> float:  # type: ignore[override]
        """The factor by which ``fabric.backward`` multiplies the loss."""
        return self.loss_scale

    @property
    def log_every_n_steps(self) -> int:  # type: ignore[override]
        """The number of steps from one log to the next; 0 without loggers."""
        return _LOG_EVERY_N_STEPS if self.fabric.loggers else 0

    def backward(self, loss: Tensor, **options: Any) -> None:
        """Call ``fabric.backward``, which scales the loss if there is a scaler.

        Raises:
            ValueError: If sharded gradients are not synchronized, so that they can't be read.
        """
        self.fabric.backward(loss, **options)
        if _SHARDED in _names(self.fabric.strategy) and all(p.grad is None for p in self.module.parameters()):
            raise ValueError(
                f"fabric.no_backward_sync: expected none around run.backward with {_SHARDED}, which then keeps "
                "gradients where they can't be read. Leave it out; the sum of gradients is the same"
            )

    def compute_loss(self, batch: Any) -> Tensor:
        """Compute the training loss of a batch with the model that ``fabric.setup`` has returned."""
        loss = super().compute_loss(batch)
        # Fabric forbids, by a hook on a model's output, to differentiate up to it otherwise than by fabric.backward.
        return loss.view_as(loss) if isinstance(loss, Tensor) else loss

    def query_functions(
        self, losses: QueryLosses | None, learned: QueryLosses | None
    ) -> tuple[QueryLosses, QueryLosses | None]:
        """Let the functions of queries, or those that are found if there are none, call the model as training does.

        Raises:
            ValueError: If there is no way to know the losses.
        """
        learned = learned or find_query_learned(self.module)
        return self._by_fabric(losses or find_query_losses(self.module)), None if learned is None else self._by_fabric(
            learned
        )

    def _by_fabric(self, function: QueryLosses) -> QueryLosses:
        """Give a user's function a model as ``fabric.setup`` returns it; run a ready-made one as a forward pass."""

        @wraps(function)
        def by_fabric(module: nn.Module, batch: Any) -> Tensor:
            if function not in READY_MADE:
                return function(self.undistributed, batch)
            with self.plugin.forward_context():
                return function(module, self.plugin.convert_input(batch))

        by_fabric.__qualname__ = getattr(function, "__qualname__", type(function).__qualname__)  # for the manifest
        return by_fabric

    def to_device(self, batch: Any) -> Any:
        """Move a batch's tensors, as ``fabric.to_device`` does."""
        return self.fabric.to_device(batch)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Do nothing: the model itself runs in Fabric's precision, and what is outside of it doesn't."""
        return nullcontext()

    def require_known_autocast(self) -> None:
        """Refuse autocast that the queries' losses would be computed without."""
        if torch.is_autocast_enabled(self.device.type):
            raise ValueError(
                "run.loss: expected no autocast around it, found some. The model runs in Fabric's precision by itself; "
                "for what is outside of it, call fabric.autocast() in training_loss and query_losses"
            )

    @contextmanager
    def rehearsing(self, on_loss: OnLoss) -> Iterator[None]:
        """Refuse optimizer steps, and log nothing."""
        silenced = dict.fromkeys(("log", "log_dict", "print"), _do_nothing)
        with replaced(self.fabric, silenced), super().rehearsing(on_loss):
            yield

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers with Fabric's loggers."""
        self.fabric.log_dict(metrics, step)

    def facts(self) -> dict[str, Any]:
        """Describe the loop for a manifest."""
        return {
            "precision": self.precision,
            "strategy": type(self.fabric.strategy).__name__,
            "hyperparameters": dict(getattr(self.module, "hparams", {})),
        }


def is_of_fabric(value: Any) -> bool:
    """Whether a model or an optimizer is one that ``fabric.setup`` has returned."""
    return not _names(value).isdisjoint(("_FabricModule", "_FabricOptimizer"))


def _names(value: Any) -> set[str]:
    """Return the names of an object's classes, of which it is an instance."""
    return {kind.__name__ for kind in type(value).__mro__}


def _require_supported(fabric: Any, model: Any) -> None:
    if "Fabric" not in _names(fabric):
        raise ValueError(f"fabric: expected a lightning.fabric.Fabric, found {type(fabric).__name__}")
    strategy, plugin = _names(fabric.strategy), fabric.strategy.precision
    if strategy.isdisjoint(_STRATEGIES) or any("XLA" in name for name in strategy):
        raise ValueError(
            f"fabric: expected one device, DDP or {_SHARDED}, found {type(fabric.strategy).__name__}, whose gradients "
            f'can\'t be read. Set Fabric(strategy="ddp"), or {_SHARDED} for sharded weights'
        )
    if _SHARDED in strategy and fabric.strategy.device_mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            "fabric: expected whole layers, found tensor parallelism, which splits layers, whose inputs can't be read. "
            f"Set {_SHARDED}(..., tensor_parallel_size=1)"
        )
    if str(plugin.precision) not in PRECISIONS or "BitsandbytesPrecision" in _names(plugin):
        raise ValueError(
            f"fabric: expected a precision among {PRECISIONS}, found {type(plugin).__name__}, whose layers can't be "
            'read. Set Fabric(precision="bf16-mixed")'
        )
    if any(
        isinstance(module, torch._dynamo.OptimizedModule) for module in (model, getattr(model, "_forward_module", 0))
    ):
        raise ValueError(
            "model: expected one without torch.compile(model), whose hooks would come too late. Compile it in "
            "place, before fabric.setup: model.compile()"
        )
    if "_FabricModule" not in _names(model):
        raise ValueError(
            f"model: expected the one that fabric.setup(model, optimizer) has returned, found {type(model).__name__}. "
            "Pass that one, or leave out fabric=..."
        )


def _undistributed(model: Any) -> Any:
    """Wrap the module as ``fabric.setup`` has done, but with nothing between, such as DistributedDataParallel."""
    module = model.module
    is_direct = model._forward_module is module
    wrapper = _undistributed_class(type(model))(module if is_direct else _Passing(module), model._strategy, module)
    wrapper._forward_methods = set(model._forward_methods)
    wrapper._device = model._device
    wrapper._dtype = model._dtype
    return wrapper


def _undistributed_class(wrapper: Any) -> Any:
    class Undistributed(wrapper):
        """A wrapper whose passes may be differentiated otherwise than by ``fabric.backward``."""

        def _register_backward_hook(self, tensor: Tensor) -> Tensor:
            return tensor

        @property
        def training(self) -> bool:
            """The module's own mode."""
            return self._original_module.training

        @training.setter
        def training(self, mode: bool) -> None:
            """Leave it to the module."""

    return Undistributed


class _Passing(nn.Module):
    """A wrapper in the place of DistributedDataParallel, in which marked methods find the way to the module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    """Take the place of a function that logs."""
