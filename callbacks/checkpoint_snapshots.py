"""Snapshots at chosen steps of a training run; :mod:`ftrace.online.snapshots` describes their format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from ftrace.arguments import Count, Name, Positive, Within, checked
from ftrace.callbacks.lightning_loop import LightningLoop
from ftrace.callbacks.output_dirs import drop_earlier_trial, output_dir_of
from ftrace.files.claims import Claim
from ftrace.online.output_folder import claim_for_all
from ftrace.online.snapshots import save_snapshot


@checked
class CheckpointSnapshots(Callback):
    """A callback that saves snapshots of the model, at the steps of exactly one of three schedules.

    It is no Lightning ``Checkpoint``, and doesn't affect your ModelCheckpoint. Steps are optimizer steps: a snapshot of
    step t holds the weights after t steps, and the learning rates that step t + 1 will use.

    Args:
        output_dir: The folder of the snapshots; default: ``snapshots`` in the run's log folder.
        steps: The steps to save; 0 is the model before training.
        every_n_steps: n, to save steps 0, n, 2n, ...
        log_spaced: The number of steps to save besides step 0, logarithmically spaced from the first to the last. The
            number of steps of the run must be known when training starts.

    Raises:
        ValueError: If not exactly one schedule is given, or a step is negative; when training starts, if
            ``log_spaced`` is given and the number of steps isn't known, or if the folder holds another run's snapshots.
    """

    def __init__(
        self,
        output_dir: Name | Path | None = None,
        steps: Sequence[Count] | None = None,
        every_n_steps: Positive | None = None,
        log_spaced: Annotated[int, Within(1, 1_000_000)] | None = None,
    ) -> None:
        given = {"steps": steps, "every_n_steps": every_n_steps, "log_spaced": log_spaced}
        chosen = [name for name, value in given.items() if value is not None]
        if len(chosen) != 1:
            raise ValueError(f"expected exactly one of {', '.join(given)}, found {chosen or 'none'}")
        if steps is not None and not len(steps):
            raise ValueError(f"steps: expected steps from 0 on, found {list(steps)}")
        self.output_dir = output_dir
        self.steps = steps
        self.every_n_steps = every_n_steps
        self.log_spaced = log_spaced
        self._chosen: set[int] | None = None
        self._saved_at: int | None = None
        self._claim: Claim | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._output_dir = output_dir_of(trainer, self.output_dir, "snapshots")
        drop_earlier_trial(trainer, self._output_dir)
        self._saved_at = None
        self._release()
        self._claim = claim_for_all(self._output_dir, "CheckpointSnapshots")
        if trainer.global_step == 0 and any(self._output_dir.glob("step-*")):
            raise ValueError(
                f"CheckpointSnapshots: {str(self._output_dir)!r} holds snapshots of an earlier run, which would be "
                "mistaken for this run's. Name another folder"
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

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._release()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def _release(self) -> None:
        """Let other runs write to the folder."""
        if self._claim is not None:
            self._claim.release()

    def _save_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        due = step % self.every_n_steps == 0 if self.every_n_steps else step in (self._chosen or ())
        if due and step != self._saved_at and trainer.is_global_zero:
            save_snapshot(self._output_dir / f"step-{step:08d}", LightningLoop(trainer, pl_module))
        if due:
            self._saved_at = step


def log_spaced_steps(count: int, total: int) -> list[int]:
    """Return up to ``count`` steps from 1 to ``total``, logarithmically spaced, with the last one included.

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
