"""A gradient index that is written while the model trains, so that any query can be asked later without a replay.

At each optimizer step, an example's contribution to the gradient, divided by the root of the optimizer's second moments
and projected, becomes a row. Rows belong to segments; a segment keeps the weights and second moments of its first step,
at which later queries are differentiated. The products of rows with a query, times the rows' learning rates and summed
over all segments, are TracIn's sum over steps (Pruthi et al. 2020, arXiv 2002.08484, eq. 1), with query gradients that
are refreshed once per segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from ftrace.arguments import Count, Name, Positive, Seed, checked
from ftrace.callbacks.lightning_loop import LightningLoop, refuse_loop_without_index
from ftrace.callbacks.output_dirs import drop_earlier_trial, output_dir_of
from ftrace.gradients import ProjectionSide
from ftrace.index import Entries, FeatureSettings, IndexSettings
from ftrace.launched_processes import end_failed_training, watch_processes
from ftrace.online.index_writing.index_run import RunSettings
from ftrace.online.index_writing.segment_schedule import SegmentSchedule
from ftrace.online.index_writing.session import IndexSession

WHO = "GradientIndexWriter"


@checked
class GradientIndexWriter(Callback):
    """A callback that writes an index of the examples' projected, preconditioned gradients during training.

    It works in any LightningModule under automatic optimization with one optimizer; rows are read off the module's own
    backward pass, whatever its loss. Weights after training are bit-identical with and without this callback.

    Args:
        output_dir: The index's folder; default: ``index`` in the run's log folder.
        epochs: The epochs to write; default: all.
        steps: Ranges ``[first, last]`` of optimizer steps to write instead, the last one included.
        segment_steps: The number of optimizer steps after which a new segment begins; default: one segment for each
            epoch or range. A later query is differentiated once per segment.
        projection_side: K: each weight's gradient becomes K x K, and each block of a row has K * K elements.
        layout: The weights that share a block: "pooled", attention or MLP weights of consecutive layers; "layer";
            "parameter".
        layer_groups: The number of groups of layers in the layout "pooled".
        parameters: Globs over parameter names, in order; one that begins with "!" excludes. Default: the matrices in
            the model's numbered blocks.
        preconditioner: What gradients are divided by: "rank-one", the root of the closest outer product to the
            optimizer's second moments; "elementwise", their root as it is, for which each example's gradient of each
            weight is formed unprojected; "none". Nothing is divided before the first step, nor with optimizers that
            keep no second moments.
        entries: The distribution of the projection's entries: "gaussian" or "rademacher".
        dtype: The dtype of rows on disk: "float32", "float16", "bfloat16" or "float64".
        shard_bytes: The approximate size of a file of rows, which is held in memory until it is written.
        sample: The number of rows, drawn at random, from which a segment's autocorrelation is computed.
        id_key: The key of the examples' ids in a batch: int64 ``[B]`` or a list of names.
        strict: Whether a parameter that can't be covered, or a failed self-check, is an error; otherwise a warning. A
            parameter that turns out to be unreadable when the model runs is always an error, since all rows must have
            the same parameters.
        self_check: Whether to check two examples of the first batch, and of a few later ones, against plain autograd,
            and the sum of rows against the gradient at the first step of each segment. Whose rows are whose is found
            out with and without it.
        seed: Of the projection and of the sample.
        shared_ids: Whether several rows of the data may have the same id, such as the pieces of a document.
        describe: Says the texts of the examples, which the index keeps. A function of a batch:
            ``(batch) -> {"text": [...], "answer": [...]}``, with an entry for each row; it must not change the batch.
            Or a data set of rows with ``example_id`` and ``text``. Default: the datamodule's ``describe()``, if it has
            one.
        side: Deprecated: the old name of ``projection_side``.
        groups: Deprecated: the old name of ``layer_groups``.
        correction: Deprecated: the old name of ``preconditioner``.

    Raises:
        ValueError: On an unknown or unsupported option; when training starts, on a loop that is not supported, or a
            folder that holds something else.
        SelfCheckError: When the self-check fails.
    """

    def __init__(
        self,
        output_dir: Name | Path | None = None,
        epochs: Sequence[Count] | None = None,
        steps: Sequence[Sequence[Count]] | None = None,
        segment_steps: Positive | None = None,
        projection_side: ProjectionSide = 16,
        layout: Literal["pooled", "layer", "parameter"] = "pooled",
        layer_groups: Positive = 8,
        parameters: Sequence[Name] | None = None,
        preconditioner: Literal["rank-one", "elementwise", "none"] = "rank-one",
        entries: Entries = "gaussian",
        dtype: Literal["float32", "float16", "bfloat16", "float64"] = "float32",
        shard_bytes: Positive = 64 * 2**20,
        sample: Positive = 10_000,
        id_key: Name | Count = "example_id",
        strict: bool = True,
        self_check: bool = True,
        seed: Seed = 0,
        shared_ids: bool = False,
        describe: Any = None,
        side: ProjectionSide | None = None,
        groups: Positive | None = None,
        correction: Literal["rank-one", "elementwise", "none"] | None = None,
    ) -> None:
        patterns = None if parameters is None else tuple(parameters)
        features = FeatureSettings.under_new_names(
            WHO, projection_side=projection_side, seed=seed, layout=layout, layer_groups=layer_groups,
            parameters=patterns, preconditioner=preconditioner, entries=entries, side=side, groups=groups,
            correction=correction,
        )  # fmt: skip
        self.settings = IndexSettings(features, dtype, shard_bytes, sample)
        self.output_dir = output_dir
        run = RunSettings(id_key, strict, self_check, shared_ids, describe)
        self._session = IndexSession(self.settings, SegmentSchedule(epochs, steps, segment_steps), run, WHO)

    @property
    @override
    def state_key(self) -> str:
        """The key of this callback's state in checkpoints, which depends on its folder: a run may have several."""
        return self._generate_state_key(output_dir=None if self.output_dir is None else str(self.output_dir))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._session.before_training(pl_module)

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._session.ending.signals_begin(LightningLoop(trainer, pl_module))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        watch_processes(trainer)
        refuse_loop_without_index(trainer, pl_module, WHO)
        default_dir = output_dir_of(trainer, None, "index")
        output_dir = None if self.output_dir is None else output_dir_of(trainer, self.output_dir, "index")
        drop_earlier_trial(trainer, output_dir or default_dir)
        data = getattr(getattr(trainer, "datamodule", None), "fingerprint", None)
        self._session.training_begins(LightningLoop(trainer, pl_module), output_dir, default_dir, data)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._session.batch_begins(batch, batch_idx)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._session.running.before_backward(loss)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._session.running.after_backward()

    @override
    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._session.running.discard_rows()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # Only at this point is the gradient complete and unclipped.
        self._session.running.begin_step()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._session.running.end_batch()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._session.training_has_ended()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._session.waits_to_be_closed:  # there is nothing left to train
            self.on_train_start(trainer, pl_module)
            self.on_train_end(trainer, pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        try:
            self._session.training_has_failed()
        finally:
            end_failed_training(trainer, exception, together=not self._session.ending.is_alone)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._session.detach()

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._session.state()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._session.load(state_dict)
