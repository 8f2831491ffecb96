"""The folders of callbacks: those that users name, those in the run's log folder, and those of trials."""

from __future__ import annotations

import shutil
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from ftrace.shown_text import plain

_TRIAL = "fast-dev-run"


def output_dir_of(trainer: Trainer, given: str | Path | None, name: str) -> Path:
    """Return the folder to which a callback writes.

    Args:
        trainer: The trainer, which may be on a trial: that of ``fast_dev_run`` has a folder of its own beside.
        given: The folder that the user has named.
        name: That of the default, in the run's log folder.
    """
    folder = Path(given) if given is not None else Path(trainer.log_dir or trainer.default_root_dir) / name
    return folder.with_name(f"{folder.name}-{_TRIAL}") if trainer.fast_dev_run else folder  # type: ignore[attr-defined]


def drop_earlier_trial(trainer: Trainer, folder: Path) -> None:
    """Remove what an earlier trial has written, if this is one."""
    is_trial = trainer.fast_dev_run  # type: ignore[attr-defined]
    if is_trial and trainer.is_global_zero and folder.name.endswith(_TRIAL) and folder.exists():
        rank_zero_info(f"fast_dev_run: replaces what an earlier one has left in {plain(str(folder))}")
        shutil.rmtree(folder)
