"""The progress of Lightning's prediction, which its own bar would write to stdout, among results."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from ftrace.progress import Advance, progress


class PredictionProgress(Callback):
    """A callback that shows how many batches of this process's have been predicted.

    Args:
        what: What is done with the batches.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown: AbstractContextManager[Advance] | None = None
        self._advance: Advance | None = None

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = sum(count for count in trainer.num_predict_batches if count != float("inf"))
        self._shown = progress(self._what, int(total) or None)
        self._advance = self._shown.__enter__()

    @override
    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        assert self._advance is not None
        self._advance(1)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        shown, self._shown = self._shown, None
        if shown is not None:
            shown.__exit__(None, None, None)
