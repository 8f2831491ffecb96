"""Snapshots for attribution: weights, second moments and learning rates at chosen steps.

A snapshot is a folder ``step-00000120/``:

    weights.safetensors           each parameter and buffer once, by its first name in the LightningModule
    second_moments.safetensors    what the optimizer keeps of squared gradients, as "parameter::key"; absent without one
    snapshot.json                 step, epoch, learning rates by parameter group, optimizer, tied names, versions
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from ftrace.gradients import full_name
from ftrace.whole_files import whole_file, whole_folder

# Adam and its like; Adafactor's factored ones; RMSprop.
_SECOND_MOMENTS = (
    "exp_avg_sq", "max_exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col", "row_var", "col_var", "variance", "square_avg"
)  # fmt: skip
_SETTINGS = ("betas", "eps", "amsgrad")  # what second moments are read with


class CheckpointSnapshots(Callback):
    """Save snapshots of the model under training, at exactly one of three kinds of schedule.

    It is no Lightning ``Checkpoint``, and leaves your ModelCheckpoint alone. Steps count optimizer steps; a snapshot
    of step t holds the weights after t steps, and the learning rates that step t + 1 will use.

    Args:
        output_dir: Where the snapshots go; default ``snapshots`` in the run's log folder.
        steps: These very steps; 0 is the model before training.
        every_n_steps: 0, n, 2n, ...
        log_spaced: This many, logarithmically spaced from the first step to the last, besides step 0. Needs a run
            whose number of steps is known beforehand.

    Raises:
        ValueError: If not exactly one schedule is given, or a step is negative; when training starts, if
            ``log_spaced`` doesn't know the number of steps, or the folder holds another run's snapshots.
    """

    def __init__(
        self,
        output_dir: str | Path | None = None,
        steps: Sequence[int] | None = None,
        every_n_steps: int | None = None,
        log_spaced: int | None = None,
    ) -> None:
        given = {"steps": steps, "every_n_steps": every_n_steps, "log_spaced": log_spaced}
        chosen = [name for name, value in given.items() if value is not None]
        if len(chosen) != 1:
            raise ValueError(f"expected exactly one of {', '.join(given)}, found {chosen or 'none'}")
        if steps is not None and (not steps or min(steps) < 0):
            raise ValueError(f"steps: expected steps from 0 on, found {list(steps)}")
        for name in ("every_n_steps", "log_spaced"):
            value = given[name]
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name}: expected at least 1, found {value}")
        self.output_dir = output_dir
        self.steps = steps
        self.every_n_steps = every_n_steps
        self.log_spaced = log_spaced
        self._chosen: set[int] | None = None
        self._saved_at: int | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        default_dir = Path(trainer.log_dir or trainer.default_root_dir) / "snapshots"
        self._output_dir = Path(self.output_dir) if self.output_dir is not None else default_dir
        self._saved_at = None
        if trainer.global_step == 0 and any(self._output_dir.glob("step-*")):
            raise ValueError(
                f"CheckpointSnapshots: {str(self._output_dir)!r} holds snapshots of an earlier run, and later steps of "
                "it would be taken for this one's. Name another folder"
            )
        if self.steps is not None:
            self._chosen = set(self.steps)
        elif self.log_spaced is not None:
            self._chosen = {0, *log_spaced_steps(self.log_spaced, _total_steps(trainer))}
        self._save_if_due(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._save_if_due(trainer, pl_module)

    def _save_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        due = step % self.every_n_steps == 0 if self.every_n_steps else step in (self._chosen or ())
        if due and step != self._saved_at and trainer.is_global_zero:
            save_snapshot(self._output_dir / f"step-{step:08d}", trainer, pl_module)
        if due:
            self._saved_at = step


def log_spaced_steps(count: int, total: int) -> list[int]:
    """Up to ``count`` steps from 1 to ``total``, logarithmically spaced, the last one included.

    Example:
        >>> log_spaced_steps(4, 1000)
        [1, 10, 100, 1000]
    """
    if count == 1:
        return [total]
    return sorted({round(total ** (index / (count - 1))) for index in range(count)})


def _total_steps(trainer: Trainer) -> int:
    total = trainer.estimated_stepping_batches
    if total == float("inf") or total < 1:
        raise ValueError(f"log_spaced: expected a known number of steps, found {total}. Set max_steps or max_epochs")
    return int(total)


def save_snapshot(folder: Path, trainer: Trainer, pl_module: LightningModule) -> None:
    """Save a snapshot of now, whole or not at all."""
    names: dict[int, list[str]] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in pl_module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):  # a module's extra state, which is no weight
            continue
        names.setdefault(id(tensor), []).append(name)
        if len(names[id(tensor)]) == 1:  # tied weights once
            tensors[name] = tensor.detach().cpu().contiguous()
    names_of = {id(p): name for name, p in pl_module.named_parameters()}
    moments = _second_moments(trainer.optimizers, names_of)
    manifest = {
        "format": "ftrace-snapshot",
        "version": 1,
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "tied": {also: same[0] for same in names.values() for also in same[1:]},
        "optimizers": [
            {
                "class": full_name(optimizer),
                "groups": [
                    {
                        "learning_rate": float(group["lr"]),
                        "settings": {key: group[key] for key in _SETTINGS if key in group},
                        "steps": {
                            names_of[id(p)]: float(optimizer.state[p]["step"])
                            for p in group["params"]
                            if id(p) in names_of and "step" in optimizer.state.get(p, {})
                        },
                        "parameters": [names_of[id(p)] for p in group["params"] if id(p) in names_of],
                    }
                    for group in optimizer.param_groups
                ],
            }
            for optimizer in trainer.optimizers
        ],
        "versions": {name: version(name) for name in ("ftrace", "torch", "lightning")},
    }
    with whole_folder(folder) as temporary:  # may replace an earlier run's, or this run's before it was resumed
        with whole_file(temporary / "weights.safetensors") as file:
            save_file(tensors, file)
        if moments:
            with whole_file(temporary / "second_moments.safetensors") as file:
                save_file(moments, file)
        (temporary / "snapshot.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _second_moments(optimizers: Sequence[Optimizer], names_of: dict[int, str]) -> dict[str, Tensor]:
    """By ``{parameter name}::{state key}``."""
    moments = {}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key in _SECOND_MOMENTS:
                moment = state.get(key)
                if isinstance(moment, torch.Tensor) and id(parameter) in names_of:
                    moments[f"{names_of[id(parameter)]}::{key}"] = moment.detach().cpu().contiguous()
    return moments
