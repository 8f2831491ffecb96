"""A gradient index that is written while the model trains, so that any query can be asked afterwards without replay.

At optimizer step t an example's contribution to the gradient, divided by the root of the optimizer's second moments and
projected, becomes a row. Rows belong to segments; a segment keeps the weights and second moments of its first step, at
which later queries are differentiated. Summed over segments, rows times their learning rates are TracIn's sum over
steps (Pruthi et al. 2020, arXiv 2002.08484, eq. 1) with query gradients that are refreshed once a segment.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from ftrace.callbacks.checkpoint_snapshots import save_snapshot
from ftrace.gradients import GradientCapture, Recording, leave_out, parameters_option
from ftrace.index import (
    Entries,
    FeatureSettings,
    GradientFeatures,
    GradientIndex,
    IndexSettings,
    Rows,
    begin_index,
    block_weights,
    preconditioner_for_index,
    read_preconditioners,
    snapshot_fingerprint,
)
from ftrace.online.batches import batch_ids, batch_sizes
from ftrace.online.checks.index_checks import IndexChecks, refuse_loop_without_index
from ftrace.online.checks.self_check import Failures
from ftrace.online.index_writing.segment_schedule import SegmentSchedule
from ftrace.online.index_writing.segments import SegmentWriter, drop_rows_from
from ftrace.online.optimizers.clipping import Clipping
from ftrace.online.optimizers.followed_optimizer import FollowedOptimizer
from ftrace.online.processes import gather_objects, num_processes, process_rank
from ftrace.online.rehearsal.row_finder import RowFinder
from ftrace.online.repeated_ids import RepeatedIds
from ftrace.online.training_loop import (
    is_compiled_anywhere,
    loss_scale,
    refuse_batch_statistics,
    scales_inside,
    warn_of_missing_rates,
)
from ftrace.whole_files import whole_file

WHO = "GradientIndexWriter"


class GradientIndexWriter(Callback):
    """Write each example's projected, optimizer-corrected gradient during training.

    Works in any LightningModule under automatic optimization with one optimizer; rows are read off the module's own
    backward pass, whatever its loss. Weights after training are bit-identical with and without this callback.

    Args:
        output_dir: The index's folder; default ``index`` in the run's log folder.
        epochs: Which epochs to write; default: all.
        steps: Ranges ``[first, last]`` of optimizer steps to write instead, the last one included.
        segment_steps: Begin a new segment after so many optimizer steps; default: with each epoch, and each range.
            A later query is differentiated once a segment.
        projection_side: K: each weight's gradient becomes K x K, each block of a row K * K numbers.
        layout: Which weights share a block: "pooled", attention and MLP weights of consecutive layers; "layer";
            "parameter".
        layer_groups: Of the layout "pooled": how many groups of layers.
        parameters: Globs over parameter names, in order; one that begins with "!" takes away. Default: the matrices in
            the model's numbered blocks.
        preconditioner: What gradients are divided by: "rank-one", the root of the closest outer product to the
            optimizer's second moments; "elementwise", their root as it is, which forms each example's gradient of each
            weight whole; "none". Before the first step, and with optimizers that keep none, nothing is divided.
        entries: Of the projection: "gaussian" or "rademacher".
        dtype: Of rows on disk: "float32", "float16" or "bfloat16".
        shard_bytes: How large a file of rows becomes, about; it is held in memory until then.
        sample: Rows, drawn at random, that a segment's autocorrelation is taken of.
        id_key: The batch's key of the examples' ids, int64 ``[B]`` or a list of names.
        strict: Whether a parameter that can't be covered, or a failed self-check, is an error; otherwise a warning. One
            that turns out to be unreadable when the model runs always is, since all rows have the same parameters.
        self_check: Hold two examples of the first batch, and of a few later ones, against plain autograd, and the sum
            of rows against the gradient at the first step of each segment. Whose rows are whose is found out with and
            without it.
        seed: Of the projection and of the sample.
        shared_ids: Whether several rows of the data may have one id, such as the pieces of a document.
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
        output_dir: str | Path | None = None,
        epochs: Sequence[int] | None = None,
        steps: Sequence[Sequence[int]] | None = None,
        segment_steps: int | None = None,
        projection_side: int = 16,
        layout: Literal["pooled", "layer", "parameter"] = "pooled",
        layer_groups: int = 8,
        parameters: Sequence[str] | None = None,
        preconditioner: Literal["rank-one", "elementwise", "none"] = "rank-one",
        entries: Entries = "gaussian",
        dtype: Literal["float32", "float16", "bfloat16", "float64"] = "float32",
        shard_bytes: int = 64 * 2**20,
        sample: int = 10_000,
        id_key: str = "example_id",
        strict: bool = True,
        self_check: bool = True,
        seed: int = 0,
        shared_ids: bool = False,
        side: int | None = None,
        groups: int | None = None,
        correction: Literal["rank-one", "elementwise", "none"] | None = None,
    ) -> None:
        self.schedule = SegmentSchedule(epochs, steps, segment_steps)
        patterns = None if parameters is None else tuple(parameters)
        features = FeatureSettings.under_new_names(
            WHO, projection_side=projection_side, seed=seed, layout=layout, layer_groups=layer_groups,
            parameters=patterns, preconditioner=preconditioner, entries=entries, side=side, groups=groups,
            correction=correction,
        )  # fmt: skip
        self.settings = IndexSettings(features, dtype, shard_bytes, sample)
        self.output_dir = output_dir
        self.id_key = id_key
        self.shared_ids = shared_ids
        self.strict = strict
        self.self_check = self_check
        self._capture: GradientCapture | None = None
        self._handles: list[RemovableHandle] = []
        self._restored: dict[str, Any] | None = None
        self._run_id = ""

    @property
    @override
    def state_key(self) -> str:
        """Two instances in one run have states of their own, told apart by their folders."""
        return self._generate_state_key(output_dir=None if self.output_dir is None else str(self.output_dir))

    # Hooks

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._capture = None
        if is_compiled_anywhere(pl_module):  # it keeps to the hooks that it has when it is called first
            self._attach(pl_module, None)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refuse_loop_without_index(trainer, pl_module, WHO)
        warn_of_missing_rates(trainer, WHO, "the index")
        self._repeated_ids = RepeatedIds(trainer, self.id_key, strict=self.strict, shared=self.shared_ids)
        optimizer = trainer.optimizers[0]
        if self._capture is None:
            self._attach(pl_module, [p for group in optimizer.param_groups for p in group["params"]])
        assert self._capture is not None
        names = list(self._capture.coverage.covered)
        if not names:
            raise ValueError(
                f"{WHO}: expected at least one parameter to be trained. {self._capture.coverage.summary()}"
            )
        of_ids = {id(p): name for name, p in pl_module.named_parameters()}
        self._names = names
        self._optimizer = FollowedOptimizer(0, optimizer, of_ids, names, by_layer=False)
        self._parameters = {name: p for _, name, p in self._optimizer.parameters(covered=True)}
        self._clipping = Clipping(trainer, pl_module)
        coarse = trainer.precision not in ("32-true", "64-true")
        failures = (
            Failures(strict=self.strict, who=WHO, patterns=self._capture.coverage.patterns) if self.self_check else None
        )
        self._checks = None if failures is None else IndexChecks(self._parameters, failures, coarse=coarse)
        seed = self.settings.features.seed
        self._rows = RowFinder(
            trainer, pl_module, self._capture, self.id_key, WHO, failures, strict=True, seed=seed, coarse=coarse
        )
        self._example_names: dict[int, str] = {}
        self._segment: SegmentWriter | None = None
        self._window: list[tuple[Tensor, Tensor]] = []
        self._recording: Recording | None = None
        self._batch_ids = torch.empty(0)
        self.steps_left_out = 0
        self._begin_index(trainer, pl_module)
        self._handles.append(optimizer.register_step_post_hook(self._after_step))

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._window:
            self._step, self._epoch = trainer.global_step, trainer.current_epoch
            self._open_segment_if_due(trainer, pl_module)
        if self._segment is not None:
            assert self._capture is not None
            self._batch_ids = batch_ids(batch, self.id_key, "id_key", self._example_names)
            self._repeated_ids.see(trainer, self._batch_ids, self._example_names)
            groups, whole = batch_sizes(batch, self.id_key), self._features.needs_whole
            count = len(self._batch_ids)
            self._rows.before_batch(batch, batch_idx, count, groups, trainer.global_step, whole=whole)
            self._recording = self._capture.start(count, unprojected=whole, loaders=groups, book=self._rows.book)
            self._rows.watch(self._recording)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._recording is not None:
            with torch.autocast(pl_module.device.type, enabled=False):
                self._rows.before_backward(self._recording, loss, trainer.global_step)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._recording is None:
            return
        assert self._capture is not None
        self._capture.stop()
        with torch.no_grad(), torch.autocast(pl_module.device.type, enabled=False):
            self._rows.after_backward([self._recording], trainer.global_step)
            gradients = self._rows.read(self._recording)
            rows = self._features.rows(gradients)
            rows = rows / (loss_scale(trainer) * num_processes())
            self._window.append((rows.detach(), self._batch_ids.to(rows.device)))
        self._recording = None

    @override
    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._window = []  # of gradients that no optimizer step has used

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # The gradient is whole and unclipped here, and only here.
        if self._segment is None:
            return
        one = self._optimizer
        one.norm_before_step = self._clipping.before_step(one, wants_norm=False)
        one.note_before_step(steps=False)
        self._rows.before_step(self._parameters)
        if self._checks is not None and not scales_inside(trainer, optimizer):
            self._checks.before_step(self._features, self._window, self._step)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._capture is not None:
            self._capture.stop()
        self._recording = None
        if self._optimizer.is_stepping:  # a loss scaler has left the step out
            self._optimizer.is_stepping, self._window = False, []

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._close_segment()
        self._detach()
        self._rows.say_what_was_never_checked()
        if not any(self._output_dir.glob("segment-*")):
            rank_zero_warn(
                f"{WHO}: nothing was written: the {trainer.global_step} steps of {trainer.current_epoch} epochs had "
                f"none of epochs={self.schedule.epochs}, steps={self.schedule.steps}"
            )
        elif process_rank() == 0:
            index = GradientIndex(self._output_dir)
            size = sum(file.stat().st_size for file in self._output_dir.glob("segment-*/*"))
            rank_zero_info(
                f"{WHO}: {index.num_rows:,} rows of {index.size:,} numbers in {len(index.segments)} segments, "
                f"{size / 2**20:,.0f} MiB: {self._output_dir}. Ask it with ftrace search --index {self._output_dir}"
            )

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Killed after its last checkpoint and before its last segment was closed: there is nothing left to train.
        if self._restored is not None:
            self.on_train_start(trainer, pl_module)
            self.on_train_end(trainer, pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if getattr(self, "_segment", None) is not None:
            assert self._segment is not None
            self._segment.flush()
        self._detach()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._detach()

    @override
    def state_dict(self) -> dict[str, Any]:
        if not self._run_id:
            return {}
        if self._segment is not None:
            self._segment.flush()
        return {"version": 1, "run_id": self._run_id, "output_dir": str(self._output_dir)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict or None

    # Helpers

    def _attach(self, pl_module: LightningModule, optimized: list[Any] | None) -> None:
        patterns = self.settings.features.parameters or tuple(block_weights(pl_module))
        self._capture = GradientCapture(pl_module, patterns, optimized, reads_graph=True)
        gaps = [gap.parameter for gap in self._capture.coverage.gaps]
        if gaps and self.strict:
            refuse_batch_statistics(pl_module, gaps, WHO)
            summary, self._capture = self._capture.coverage.summary(), None
            raise ValueError(
                f"{WHO} can't cover {len(gaps)} trained parameters. {summary}\n{leave_out(gaps, patterns)}, or go on "
                "without with strict=False."
            )
        self._capture.attach()

    def _detach(self) -> None:
        if self._capture is not None:
            self._capture.detach()
            self._capture = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin_index(self, trainer: Trainer, pl_module: LightningModule) -> None:
        default = Path(trainer.log_dir or trainer.default_root_dir) / "index"
        found = Path(self.output_dir) if self.output_dir is not None else default
        restored, self._restored = self._restored, None
        if restored and self.output_dir is None:  # a logger has a new folder for each call
            found = Path(restored["output_dir"])
        self._output_dir = Path(trainer.strategy.broadcast(str(found.absolute())))
        goes_on = bool(trainer.global_step) and bool(self._run_id)  # the same callback, told to train on
        if restored:
            self._run_id = restored["run_id"]
        elif not goes_on:
            self._run_id = gather_objects(uuid.uuid4().hex)[0]
        if (restored or goes_on) and not (self._output_dir / "index.json").exists():
            raise ValueError(
                f"{WHO}: training goes on with an index, and there is none at {str(self._output_dir)!r}. Move it "
                "there, or name where it is: output_dir=..."
            )
        if trainer.global_step and not restored and not goes_on:
            rank_zero_warn(
                f"{WHO}: training goes on at step {trainer.global_step}, from a checkpoint that knows no index: rows "
                "of earlier steps are not in this one"
            )
        data = getattr(getattr(trainer, "datamodule", None), "fingerprint", None)
        facts = {"written_by": WHO, "output": "the training loss", "run_id": self._run_id, "data": data}
        manifest = self._output_dir / "index.json"
        if process_rank() == 0:
            if manifest.exists() and json.loads(manifest.read_text()).get("run_id") != self._run_id:
                raise ValueError(
                    f"{WHO}: {str(self._output_dir)!r} holds the index of another run. Name another output_dir, or "
                    "move or delete the folder"
                )
            begin_index(self._output_dir, self.settings, pl_module, self._names, facts)
            drop_rows_from(self._output_dir, trainer.global_step, self.settings.dtype)
        trainer.strategy.barrier()
        self._features = GradientFeatures(self.settings.features, self._names)
        self._go_on_with_segment(trainer)

    def _go_on_with_segment(self, trainer: Trainer) -> None:
        """Take up the last segment, if it was open at the step that training goes on with."""
        unfinished = [one for one in sorted(self._output_dir.glob("segment-*")) if not (one / "segment.json").exists()]
        if not unfinished:
            return
        folder = unfinished[-1]
        step = int(folder.name.removeprefix("segment-"))
        noted = json.loads((folder / "begun.json").read_text())
        self._segment = SegmentWriter(folder, self.settings, self._features.size, step, noted["epoch"])
        like = next(iter(self._parameters.values()))
        self._use(GradientFeatures(self.settings.features, self._names, read_preconditioners(folder, like)))

    def _open_segment_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = self._segment
        if now is not None and self.schedule.goes_on((now.step, now.epoch), self._step, self._epoch):
            return
        self._close_segment()
        if self.schedule.part(self._step, self._epoch) is None:
            return
        snapshot = self._output_dir / "snapshots" / f"step-{self._step:08d}"
        preconditioners, kind = {}, self.settings.features.preconditioner
        if kind != "none":
            of_optimizer = self._optimizer.preconditioners(elementwise=True)
            preconditioners = {name: preconditioner_for_index(one, kind) for name, one in of_optimizer.items()}
        features = GradientFeatures(self.settings.features, self._names, preconditioners)
        undivided = [name for name in self._names if name not in features.preconditioners]
        if features.preconditioners and undivided:
            rank_zero_warn(
                f"{WHO}: at step {self._step} the optimizer has no second moments of {undivided[0]!r} and "
                f"{len(undivided) - 1} others yet: their gradients are not divided, beside others that are. The "
                "segment lists them"
            )
        folder = self._output_dir / f"segment-{self._step:08d}"
        self._segment = SegmentWriter(folder, self.settings, features.size, self._step, self._epoch)
        if process_rank() == 0:
            save_snapshot(snapshot, trainer, pl_module)
            self._segment.begin(features.preconditioners)
            with whole_file(folder / "begun.json") as temporary:
                temporary.write_text(json.dumps({"epoch": self._epoch}))
        trainer.strategy.barrier()
        self._use(features)

    def _use(self, features: GradientFeatures) -> None:
        assert self._capture is not None
        self._features = features
        self._capture.projection = features.projection
        if self._checks is not None:
            self._checks.begin_segment()

    def _close_segment(self) -> None:
        segment, self._segment = self._segment, None
        if segment is None:
            return
        segment.flush()
        names = {name: one for found in gather_objects(self._example_names) for name, one in found.items()}
        gather_objects(None)  # all have written out
        if process_rank() == 0:
            snapshot = Path("snapshots") / f"step-{segment.step:08d}"
            facts = {
                "snapshot": str(snapshot),
                "fingerprint": snapshot_fingerprint(self._output_dir / snapshot),
                "last_step": self._step - 1,
                "preconditioned": bool(self._features.preconditioners),
                "undivided": [name for name in self._names if name not in self._features.preconditioners],
                "steps_left_out": self.steps_left_out,
                "rows": self._rows.facts(),
            }
            self.steps_left_out = 0
            if names:
                with whole_file(self._output_dir / "example_names.json") as temporary:
                    temporary.write_text(json.dumps(names))
            segment.close(list(self._features.blocks), facts)
        gather_objects(None)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        one, segment = self._optimizer, self._segment
        if segment is None or not one.is_stepping:
            return
        one.is_stepping = False
        self._clipping.after_step(one)
        weight = self._learning_rate() * self._clipping.factor
        window, self._window = self._window, []
        if not window:
            return
        rows, ids = (torch.cat(parts).cpu() for parts in zip(*window, strict=True))
        if not rows.isfinite().all():
            self._leave_out()
            return
        of_step = torch.full((len(ids),), self._step, dtype=torch.int64)
        segment.add(Rows(rows, ids, torch.full((len(ids),), weight, dtype=rows.dtype), of_step))

    def _learning_rate(self) -> float:
        by_rate: dict[float, list[str]] = {}
        for index, name, _ in self._optimizer.parameters(covered=True):
            by_rate.setdefault(self._optimizer.rates[index], []).append(name)
        if len(by_rate) != 1:
            most = max(by_rate.values(), key=len)
            raise ValueError(
                f"{WHO}: expected one learning rate for all parameters that the index sees, found {sorted(by_rate)}. "
                f"Choose parameters of one group, such as {parameters_option(most)}"
            )
        return next(iter(by_rate))

    def _leave_out(self) -> None:
        if not self.steps_left_out:
            rank_zero_warn(
                f"{WHO}: gradients of step {self._step} are not finite. Its rows are left out, and so will be those of "
                "other such steps; segments count them"
            )
        self.steps_left_out += 1
