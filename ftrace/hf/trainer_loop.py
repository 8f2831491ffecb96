"""Hugging Face's Trainer behind the interface of a traced run (:class:`ftrace.online.TrainingLoop`)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ftrace.gradients import OnLoss
from ftrace.hf.row_ids import without
from ftrace.online import PlainLoop, TrainLoaders, Wording
from ftrace.online.undisturbed.kept_objects import keep

_FUSED = ("lomo", "adalomo")  # step in the backward pass


class TrainerLoop(PlainLoop):
    """The loop of one ``trainer.train()``.

    Args:
        trainer: The trainer, about to train.
        compute_loss: Its own ``compute_loss``.
        loader: The loader of training rows.
        id_key: The key of the examples' ids in a batch.

    Attributes:
        options: The arguments by name with which the trainer computes the loss of the current batch, such as
            ``num_items_in_batch``.
    """

    packages = ("transformers", "accelerate", "trl", "peft")
    wording = Wording(
        backward="self.accelerator.backward(loss)",
        clip="TrainingArguments(max_grad_norm=...)",
        step="Take an optimizer that steps without a closure",
        unfreeze=", such as in on_epoch_begin",
    )

    def __init__(self, trainer: Trainer, compute_loss: Callable[..., Any], loader: Any, id_key: str) -> None:
        self.options: dict[str, Any] = {}
        self._trainer = trainer
        self._loader = loader

        def training_loss(model: Any, batch: Mapping[str, Any]) -> Any:
            return compute_loss(model, without(batch, id_key), **self.options)

        super().__init__(
            trainer.model_wrapped,
            [inner_optimizer(trainer.optimizer)],
            training_loss,
            _precision(trainer),
            [getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)],
            trainer.accelerator.scaler,
            trainer.state.global_step,
        )
        self.module = trainer.model

    @property
    def train_loaders(self) -> TrainLoaders:  # type: ignore[override]
        """The loader of training rows."""
        args, state = self._trainer.args, self._trainer.state
        batches = float(state.max_steps * args.gradient_accumulation_steps) if state.max_steps > 0 else math.inf
        loaders = [self._loader] if isinstance(self._loader, DataLoader) else []
        # GRPO's loader draws each prompt several times, and its batches are not those that are trained on.
        are_all = bool(loaders) and not hasattr(self._trainer, "num_generations")
        return TrainLoaders(loaders, are_all, False, math.ceil(state.num_train_epochs), batches)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return no context: accelerate has put autocast into the model's own forward."""
        return nullcontext()

    @contextmanager
    def rehearsing(self, on_loss: OnLoss) -> Iterator[None]:
        """Let the trainer's metrics and counters be as they were afterwards."""
        attributes = dict(vars(self._trainer))
        put_backs = [keep(value) for value in _containers(attributes)]
        try:
            with super().rehearsing(on_loss):
                yield
        finally:
            for put_back in put_backs:
                if put_back is not None:
                    put_back()
            vars(self._trainer).clear()
            vars(self._trainer).update(attributes)

    def deletable_checkpoints(self) -> Sequence[Path]:
        """List the trainer's own, if it keeps a limited number of them."""
        args = self._trainer.args
        if not args.save_total_limit:
            return []
        return sorted(Path(args.output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/trainer_state.json"))

    def facts(self) -> dict[str, Any]:
        """Describe the trainer for a manifest."""
        args = self._trainer.args
        return {
            "gradient_clip_val": args.max_grad_norm,
            "accumulate_grad_batches": args.gradient_accumulation_steps,
            "precision": self.precision,
            "strategy": type(self._trainer).__name__,
            "hyperparameters": {
                name: getattr(args, name) for name in ("learning_rate", "weight_decay", "warmup_steps", "seed")
            },
        }


def _containers(attributes: Mapping[str, Any]) -> list[Any]:
    """Collect the lists and dictionaries in which a trainer keeps metrics and counters, each once."""
    waiting, found = list(attributes.values()), {}
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list | set | deque) and id(value) not in found:
            found[id(value)] = value
            waiting += value.values() if isinstance(value, dict) else value
    return list(found.values())


def inner_optimizer(optimizer: Any) -> Optimizer:
    """Return the optimizer inside of accelerate's."""
    while not isinstance(optimizer, Optimizer) or type(optimizer).__module__.startswith("accelerate."):
        optimizer = optimizer.optimizer
    return optimizer


def _precision(trainer: Trainer) -> str:
    mixed = trainer.accelerator.mixed_precision
    if mixed in ("bf16", "fp16"):
        return f"{mixed.replace('fp16', '16')}-mixed"
    dtypes = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
    names = {torch.float64: "64-true", torch.bfloat16: "bf16-true", torch.float16: "16-true"}
    return next((names[dtype] for dtype in names if dtypes == {dtype}), "32-true")


def refuse_unsupported(trainer: Any, who: str) -> None:
    """Refuse trainers in which scores would be wrong.

    Raises:
        ValueError: If something isn't supported; with the remedy.
    """
    for problem in _problems(trainer):
        raise ValueError(f"{who}: {problem}")


def _problems(trainer: Any) -> Iterator[str]:
    args, accelerator = trainer.args, trainer.accelerator
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        kind = "DeepSpeed" if trainer.is_deepspeed_enabled else "FSDP"
        yield f"expected one device or DDP, found {kind}, whose gradients can't be read. Train with DDP (torchrun)"
    if args.n_gpu > 1:
        yield "expected one device a process, found DataParallel. Launch one process a device with torchrun"
    if getattr(accelerator, "parallelism_config", None) is not None:
        yield "expected no parallelism_config, which splits layers or sequences. Leave it out"
    if args.torch_compile:
        yield "expected a model that isn't compiled, found torch_compile=True. Set it to False"
    if args.use_liger_kernel:
        yield (
            "expected layers whose inputs can be read, found use_liger_kernel=True, whose kernels fuse them. Set it to "
            "False"
        )
    if args.auto_find_batch_size:
        yield "expected a fixed batch size, found auto_find_batch_size=True, which trains anew. Set it to False"
    if args.restore_callback_states_from_checkpoint:
        yield (
            "expected restore_callback_states_from_checkpoint=False, found True, which makes new callbacks. Scores are "
            "restored in any case"
        )
    if any(fused in str(args.optim) for fused in _FUSED):
        yield f"expected an optimizer that steps after the backward pass, found {args.optim}. Take optim='adamw_torch'"
