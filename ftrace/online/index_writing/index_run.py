"""One training run of which an index is written: from backward passes and optimizer steps to rows and segments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ftrace.arguments import Count, Name, checked
from ftrace.gradients import GradientCapture, Recording, parameters_option
from ftrace.index import (
    GradientFeatures,
    IndexSettings,
    Rows,
    preconditioner_for_index,
    read_begun,
    read_preconditioners,
    snapshot_fingerprint,
    write_begun,
    write_names,
)
from ftrace.online.batches import batch_ids, batch_sizes
from ftrace.online.checks.failures import Failures
from ftrace.online.checks.index_checks import IndexChecks
from ftrace.online.index_writing.segment_schedule import SegmentSchedule
from ftrace.online.index_writing.segments import SegmentWriter
from ftrace.online.loop import TrainingLoop
from ftrace.online.messages import warn
from ftrace.online.optimizers.clipping import Clipping
from ftrace.online.optimizers.followed_optimizer import FollowedOptimizer
from ftrace.online.output_folder import OutputFolder
from ftrace.online.precision import eps_of_passes
from ftrace.online.processes import gather_objects, num_processes, process_rank
from ftrace.online.rehearsal.row_finder import RowFinder
from ftrace.online.repeated_ids import RepeatedIds
from ftrace.online.snapshots import save_snapshot
from ftrace.online.texts.descriptions import Descriptions
from ftrace.online.undisturbed.modes import without_autocast


@checked
@dataclass(frozen=True)
class RunSettings:
    """Settings of how a run is observed and checked.

    Args:
        id_key: The key of the examples' ids in a batch.
        strict: Whether a failed check is an error; otherwise a warning.
        self_check: Whether to check.
        shared_ids: Whether several rows of the data may have one id.
        describe: Says the texts of the examples: a function of a batch, or a data set; default: the loop's own data.
    """

    id_key: Name | Count = "example_id"
    strict: bool = True
    self_check: bool = True
    shared_ids: bool = False
    describe: Any = None


class IndexRun:
    """The writing of an index, from the first batch of a run to its last step.

    Args:
        loop: The training loop, with one optimizer.
        capture: Records the gradients of its module; attached already.
        index: What rows are made of, and how they are stored.
        schedule: The steps that are written.
        settings: How the run is observed and checked.
        folder: The index's folder.
        descriptions: The texts of the examples.
        who: Whose messages these are.

    Attributes:
        names: The parameters that the index covers.
        steps_left_out: The number of steps since the last segment was closed whose gradients were not finite.
        rows: Finds out which rows of the model's tensors belong to which example.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        capture: GradientCapture,
        index: IndexSettings,
        schedule: SegmentSchedule,
        settings: RunSettings,
        folder: OutputFolder,
        descriptions: Descriptions,
        who: str,
    ) -> None:
        self.loop = loop
        self.capture = capture
        self.index = index
        self.schedule = schedule
        self.settings = settings
        self.folder = folder
        self.descriptions = descriptions
        self.who = who
        self.names = list(capture.coverage.covered)
        self.steps_left_out = 0
        self._features = GradientFeatures(index.features, self.names)
        self._repeated_ids = RepeatedIds(loop, settings.id_key, strict=settings.strict, shared=settings.shared_ids)
        names_by_id = {id(p): name for name, p in loop.module.named_parameters()}
        self._optimizer = FollowedOptimizer(0, loop.optimizers[0], names_by_id, self.names, by_layer=False)
        self._parameters = {name: p for _, name, p in self._optimizer.parameters(covered=True)}
        self._clipping = Clipping(loop)
        eps = eps_of_passes(loop)
        failures = None
        if settings.self_check:
            failures = Failures(strict=settings.strict, who=who, patterns=capture.coverage.patterns)
        self._checks = None if failures is None else IndexChecks(self._parameters, failures, eps=eps)
        self.rows = RowFinder(
            loop,
            capture,
            settings.id_key,
            who,
            failures,
            strict=True,
            seed=index.features.seed,
            eps=eps,
        )
        self._example_names: dict[int, str] = {}
        self._segment: SegmentWriter | None = None
        self._unused_rows: list[tuple[Tensor, Tensor]] = []  # rows and ids by backward pass
        self._recording: Recording | None = None
        self._batch_ids = torch.empty(0)
        self._step, self._epoch = loop.step, loop.epoch

    # Batches

    def begin_batch(self, batch: Any, batch_idx: int) -> None:
        """Open a segment if one is due, rehearse the step if that is due, and begin to record."""
        loop, key = self.loop, self.settings.id_key
        if not self._unused_rows:
            self._step, self._epoch = loop.step, loop.epoch
            self._begin_segment_if_due()
        if self._segment is None:
            return
        self._batch_ids = batch_ids(batch, key, "id_key", self._example_names)
        self._repeated_ids.check(self._batch_ids, self._example_names)
        self.descriptions.add_examples(batch, self._example_names)
        sizes, unprojected = batch_sizes(batch, key), self._features.needs_unprojected
        count = len(self._batch_ids)
        self.rows.before_batch(batch, batch_idx, count, sizes, loop.step, unprojected=unprojected)
        self._recording = self.capture.start(
            count, unprojected=unprojected, loaders=sizes, book=self.rows.book, documents=self.rows.trials.documents
        )
        self.rows.watch(self._recording)

    def before_backward(self, loss: Tensor) -> None:
        """Prepare for the backward pass."""
        if self._recording is not None:
            with without_autocast(self.loop.device):
                self.rows.before_backward(self._recording, loss, self.loop.step)

    def after_backward(self) -> None:
        """Make rows of the contributions that the backward pass has added to the gradients."""
        if self._recording is None:
            return
        self.capture.stop()
        with torch.no_grad(), without_autocast(self.loop.device):
            self.rows.after_backward([self._recording], self.loop.step)
            (gradients,) = self.rows.read(self._recording)
            rows = self._features.rows(gradients)
            rows = rows / (self.loop.loss_scale * num_processes())
            self._unused_rows.append((rows.detach(), self._batch_ids.to(rows.device)))
        self._recording = None

    def discard_rows(self) -> None:
        """Forget rows of gradients that no optimizer step has used."""
        self._unused_rows = []

    def end_batch(self) -> None:
        """Close a batch: a step that was begun but not taken has been skipped."""
        self.capture.stop()
        self._recording = None
        if self._optimizer.is_stepping:  # a loss scaler has skipped the step
            self._optimizer.is_stepping, self._unused_rows = False, []

    # Steps

    def begin_step(self) -> None:
        """Check and remember the gradients with which the optimizer is about to step."""
        if self._segment is None:
            return
        optimizer = self._optimizer
        optimizer.norm_before_step = self._clipping.before_step(optimizer, wants_norm=False)
        optimizer.note_before_step(steps=False)
        self.rows.before_step(self._parameters)
        if self._checks is not None and self._clipping.gradient_scale == 1:
            self._checks.before_step(self._features, self._unused_rows, self._step)

    def end_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Write the rows of a step that was taken; a hook of the optimizer."""
        followed, segment = self._optimizer, self._segment
        if segment is None or not followed.is_stepping:
            return
        followed.is_stepping = False
        self._clipping.after_step(followed)
        weight = self._learning_rate() * self._clipping.factor
        of_passes, self._unused_rows = self._unused_rows, []
        if not of_passes:
            return
        rows, ids = (torch.cat(parts).cpu() for parts in zip(*of_passes, strict=True))
        if not rows.isfinite().all():
            self._leave_out()
            return
        steps = torch.full((len(ids),), self._step, dtype=torch.int64)
        segment.add(Rows(rows, ids, torch.full((len(ids),), weight, dtype=rows.dtype), steps))

    def _learning_rate(self) -> float:
        by_rate: dict[float, list[str]] = {}
        for index, name, _ in self._optimizer.parameters(covered=True):
            by_rate.setdefault(self._optimizer.rates[index], []).append(name)
        if len(by_rate) != 1:
            most = max(by_rate.values(), key=len)
            raise ValueError(
                f"{self.who}: expected one learning rate for all parameters that the index covers, found "
                f"{sorted(by_rate)}. Choose parameters of one group, such as {parameters_option(most)}"
            )
        return next(iter(by_rate))

    def _leave_out(self) -> None:
        if not self.steps_left_out:
            warn(
                f"{self.who}: gradients of step {self._step} are not finite. The rows of this and of all such later "
                "steps are left out; each segment says how many steps these were"
            )
        self.steps_left_out += 1

    # Segments

    def resume_segment(self) -> None:
        """Continue the last segment, if it was still open at the step from which training resumes."""
        segments = sorted(self.folder.path.glob("segment-*"))
        unfinished = [segment for segment in segments if not (segment / "segment.json").exists()]
        if not unfinished:
            return
        folder = unfinished[-1]
        step = int(folder.name.removeprefix("segment-"))
        epoch = read_begun(folder)
        self._segment = SegmentWriter(folder, self.index, self._features.size, step, epoch)
        like = next(iter(self._parameters.values()))
        self._use(GradientFeatures(self.index.features, self.names, read_preconditioners(folder, like)))

    def _begin_segment_if_due(self) -> None:
        current = self._segment
        if current is not None and self.schedule.continues((current.step, current.epoch), self._step, self._epoch):
            return
        self.close_segment()
        if self.schedule.part(self._step, self._epoch) is None:
            return
        preconditioners, kind = {}, self.index.features.preconditioner
        if kind != "none":
            of_optimizer = self._optimizer.preconditioners(elementwise=True)
            preconditioners = {name: preconditioner_for_index(exact, kind) for name, exact in of_optimizer.items()}
        features = GradientFeatures(self.index.features, self.names, preconditioners)
        undivided = [name for name in self.names if name not in features.preconditioners]
        if features.preconditioners and undivided:
            warn(
                f"{self.who}: at step {self._step} the optimizer has no second moments yet for {undivided[0]!r} and "
                f"{len(undivided) - 1} others, so their gradients are not divided, unlike those of all other "
                "parameters. The segment lists them"
            )
        folder = self.folder.path / f"segment-{self._step:08d}"
        self._segment = SegmentWriter(folder, self.index, features.size, self._step, self._epoch)
        if process_rank() == 0:
            save_snapshot(self.folder.path / self._snapshot_of(self._step), self.loop)
            self._segment.begin(features.preconditioners)
            write_begun(folder, self._epoch)
        gather_objects(None)  # a barrier: no process writes rows before the folder exists
        self._use(features)

    def _snapshot_of(self, step: int) -> Path:
        return Path("snapshots") / f"step-{step:08d}"

    def _use(self, features: GradientFeatures) -> None:
        self._features = features
        self.capture.projection = features.projection
        if self._checks is not None:
            self._checks.begin_segment()

    def flush(self) -> None:
        """Write the rows of the open segment to disk."""
        if self._segment is not None:
            self._segment.flush()

    def close_segment(self) -> None:
        """Close the open segment. All processes must call it."""
        segment, self._segment = self._segment, None
        if segment is None:
            return
        segment.flush()
        everywhere = gather_objects(self._example_names)
        names = {number: name for of_process in everywhere for number, name in of_process.items()}
        gather_objects(None)  # a barrier: all processes have written their rows
        if process_rank() == 0:
            snapshot = self._snapshot_of(segment.step)
            facts = {
                "snapshot": str(snapshot),
                "fingerprint": snapshot_fingerprint(self.folder.path / snapshot),
                "last_step": self._step - 1,
                "preconditioned": bool(self._features.preconditioners),
                "undivided": [name for name in self.names if name not in self._features.preconditioners],
                "steps_left_out": self.steps_left_out,
                "rehearsals": self.rows.facts(),  # under "rows" a segment has their number
            }
            self.steps_left_out = 0
            if names:
                write_names(self.folder.path, names)
            segment.close(list(self._features.blocks), facts)
        gather_objects(None)

    def finish(self) -> None:
        """Close the last segment, since training has ended."""
        self._step = self.loop.step
        self.close_segment()
        self.rows.report_never_checked()
