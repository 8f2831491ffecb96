"""Rehearsals of a run's training step, which find out whose rows are whose and check what is read against autograd.

Rehearsed are batches of at least two examples: the first one; one with layers that have not run before; the next one
once a parameter has a gradient for the first time; and later on a few that are drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ftrace.gradients import (
    ExchangeError,
    GradientCapture,
    Key,
    LayoutBook,
    PerExampleGradients,
    Projection,
    Recording,
    Rehearsal,
    UnreadableError,
    give_back_freed_memory,
)
from ftrace.online.checks.comparison import reduction
from ftrace.online.checks.failures import Failures, SelfCheckError
from ftrace.online.checks.step_check import StepCheck
from ftrace.online.loop import TrainingLoop
from ftrace.online.processes import any_process, gather_objects, num_processes
from ftrace.online.rehearsal.exchange import Inputs
from ftrace.online.rehearsal.rereading import Rereading
from ftrace.online.rehearsal.row_search import RowSearch
from ftrace.online.rehearsal.row_watch import RowWatch
from ftrace.online.rehearsal.schedule import Due, RehearsalSchedule
from ftrace.online.rehearsal.trial_steps import TrialSteps
from ftrace.online.rehearsal.unreadable import UnreadableParameters

_MOST_SILENT = 3  # rehearsed batches for layers that neither inputs nor gradients reach


class RowFinder:
    """The rehearsals of one run, and the layouts of rows that they find.

    Args:
        capture: Records training.
        id_key: The key of the examples' ids in a batch.
        who: Whose messages these are.
        failures: Where checks report; None without checks.
        strict: Whether a parameter that can't be read is an error; otherwise it is left out.
        seed: For the random choice of what is checked, and when.
        eps: Of the coarsest dtype that passes go through.
        query_rows: Finds out, or returns None, whose rows are whose in the queries' passes, by their single losses.
        or_else: What the user can do about a parameter that can't be read, instead of leaving it out.
        update_coverage: Called when the set of covered parameters, or the modules they are read off, have changed.

    Attributes:
        book: Whose rows are whose, by layer and call.
        step_check: The check against autograd.
        unreadable: Parameters that turn out not to be readable off their layers.
        trials: Runs the training step of the current batch in rehearsals.
        rehearsed_at: The steps before which there was a rehearsal.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        capture: GradientCapture,
        id_key: str | int,
        who: str,
        failures: Failures | None,
        *,
        strict: bool,
        seed: int,
        eps: float,
        query_rows: Callable[[], LayoutBook | None] = lambda: None,
        or_else: str = "",
        update_coverage: Callable[[], None] = lambda: None,
    ) -> None:
        self.loop = loop
        self.failures = failures
        self.update_coverage = update_coverage
        self.book = LayoutBook()
        self.unreadable = UnreadableParameters(capture, who, strict=strict, or_else=or_else)
        self.trials = TrialSteps(loop, id_key, who)
        self.rehearsed_at: list[int] = []
        self._schedule = RehearsalSchedule(seed)
        self._search = RowSearch(self.trials, self._rehearsal, query_rows)
        self.step_check = StepCheck(loop, who, failures, torch.Generator().manual_seed(seed), eps=eps)
        self._watch = RowWatch()
        self._reports = failures or Failures(strict=strict, who=who, patterns=capture.coverage.patterns)
        self._tried: set[Key] = set()
        self._again: set[Key] = set()  # outputs that were seen before, but are now used in a new way
        self._silent_batches = 0
        self._undecided_batches = 0
        self._vain_rehearsals = 0
        self._some_unknown = False  # whether any process has unknown outputs in the current pass
        self._rereading = Rereading(who)

    @property
    def capture(self) -> GradientCapture:
        """Records training."""
        return self.unreadable.capture

    # Before the training step

    def before_batch(
        self, batch: Any, batch_idx: int, count: int, sizes: Sequence[int], step: int, *, unprojected: bool
    ) -> None:
        """Rehearse the step on a batch, if that is due.

        Args:
            batch_idx: Its index.
            count: The number of its examples.
            sizes: The sizes of the batches that it is made of; empty if there is only one dataloader.
            step: The next optimizer step.
            unprojected: Whether gradients are left unprojected although the capture has a projection.

        Raises:
            ValueError: When strict, if a parameter can't be read; or if no examples are found in the batch, or not as
                many documents of packed rows as ids.
            SelfCheckError: When strict, if the gradients that are read differ from those that autograd computes.
        """
        examples = self.trials.begin(batch, batch_idx, count, sizes)
        self._unprojected = unprojected
        self._look_for_moved_rows()
        self._rereading.begin_batch()
        self._schedule.is_due = self._schedule.is_due or self.trials.packed.is_new
        is_due = self._schedule.is_due and (examples.total > 1 or not self.rehearsed_at)
        checks = self.failures is not None
        due = Due.REHEARSAL if any(any_process([is_due])) else self._schedule.at(step, checks=checks)
        if due is Due.REHEARSAL:
            self._rehearse(step)
            self._watch.learn()
        elif due is Due.CONFIRMATION:
            self._confirm(step)
        self._rereading.reads = []

    def watch(self, recording: Recording) -> None:
        """Watch a pass of the training step for rows that it has reordered."""
        self._watch.watch(recording, self.trials.rows, self.book)

    def _look_for_moved_rows(self) -> None:
        moved = self._watch.moved()
        if moved:
            self._report_moved(moved)

    def before_backward(self, recording: Recording, loss: Tensor, step: int) -> bool:
        """Rehearse the step if layers have run that did not run in any rehearsal; then prepare the recording.

        Returns:
            Whether it is known of all outputs whose rows are whose, so that nothing will be found out after the pass.

        Raises:
            ValueError: As :meth:`before_batch`.
        """
        self._rereading.begin_pass(recording)
        starts = [] if loss.grad_fn is None else [loss.grad_fn]
        recording.prepare(starts)
        recording.of_pass.open = set()
        # Outputs that were verified are unknown again if they have another shape or are used in another way.
        new = {key for key in recording.unknown() if key not in self._tried or key in self.book.verified}
        is_other = self._schedule.is_another_graph(starts, step)
        any_new, self._some_unknown, any_other = any_process([bool(new), bool(recording.unknown()), is_other])
        if any_new:
            self._rehearse_anew(step, new)
        elif any_other:  # the step runs other operations, which may order rows differently
            self._confirm(step)
        else:
            return not self._some_unknown
        self.capture.resume(recording)
        recording.prepare(starts)
        if any_new:
            self._tried |= set(recording.unknown())
        return not self._some_unknown

    def after_backward(self, recordings: Sequence[Recording], step: int) -> None:
        """Rehearse the step again if the backward pass has shown that it must be. All processes must call it.

        A layer may now have its first gradient, so that it is unknown whose rows are whose; or it may turn out only now
        that a parameter must be read off a module that was not recorded. Then :meth:`read` uses the rehearsal's reads.

        Args:
            recordings: The recordings that the backward pass may have gone through, the expected one last.
            step: The optimizer step.

        Raises:
            ValueError: As :meth:`before_batch`.
        """
        opened = {key: recording.outputs[key] for recording in recordings for key in recording.of_pass.open or ()}
        if self._some_unknown and self._vain_rehearsals < _MOST_SILENT and any(any_process([bool(opened)])):
            self._rehearse_anew(step, opened)
            self._rereading.names |= {name for output in opened.values() for name in output.layer.names.values()}
            self._vain_rehearsals += any(any_process([not opened.keys() <= self.book.verified]))
        for recording in recordings if self._rereading.names else ():
            for key in self.book.verified.intersection(recording.of_pass.unread):
                del recording.of_pass.unread[key]
        reads_all = self._some_unknown or num_processes() == 1
        if reads_all and self.unreadable.leave_out_unread(recordings):
            self.update_coverage()

    def read(self, recording: Recording) -> list[PerExampleGradients]:
        """Return the per-example gradients of a backward pass, once for each projection, as the recording does.

        Raises:
            ValueError: If the step has run more backward passes than when it was rehearsed.
        """
        forms = recording.forms()
        if not self._rereading.names and not self.unreadable.left_out:
            return forms
        members: Sequence[Projection | None] = [None]
        if recording.projections is not None and self._unprojected:  # the rehearsal's reads are not projected
            members = recording.projections.members
        covered = self.capture.coverage.covered
        return [
            self._rereading.replace(gradients, recording, covered, projection)
            for gradients, projection in zip(forms, members, strict=True)
        ]

    def _rehearse_anew(self, step: int, opened: Collection[Key]) -> None:
        before = dict(self.unreadable.widened)
        self._again = self.book.verified.intersection(opened)
        self._rehearse(step)
        self._again = set()
        self._rereading.names |= {name for name, path in self.unreadable.widened.items() if before.get(name) != path}

    def before_step(self, parameters: dict[str, nn.Parameter]) -> None:
        """Let the next batch be rehearsed if a parameter that was never checked has a gradient now."""
        if self._schedule.is_due or self.failures is None or len(self.step_check.checked) >= len(parameters):
            return
        for name, parameter in parameters.items():
            if name not in self.step_check.checked and parameter.grad is not None and bool(parameter.grad.any()):
                self._schedule.is_due = True
                return

    # Rehearsals

    def _rehearsal(self, inputs: Sequence[Inputs]) -> Rehearsal:
        return self.trials.rehearsal(inputs, self.capture, self.book, self._again)

    def _rehearse(self, step: int) -> None:
        """Find out whose rows are whose and check, repeatedly until all parameters that remain can be read."""
        give_back_freed_memory()
        self.rehearsed_at.append(step)
        self._schedule.is_due = False
        changed = False
        inputs = self.trials.inputs()
        self.capture.stop()  # or the real pass, if there is one, would record the trial's layers, too
        self.trials.fit_loss_scale(inputs)
        try:
            while (problem := self._try(inputs, step)) is not None:
                self._work_around(problem)
                changed = True
        except (ValueError, SelfCheckError):
            self.unreadable.require_nothing_left_out()  # parameters that were left out may be the reason
            raise
        self.unreadable.require_nothing_left_out()
        if changed:
            self.update_coverage()
        give_back_freed_memory()

    def _try(self, inputs: list[Inputs], step: int) -> UnreadableError | None:
        """Find out whose rows are whose and check; return what can't be read on any process, or None.

        Raises:
            ValueError: On all processes, if one of them refuses the step.
        """
        problem: ValueError | None = None
        try:
            rehearsal = self._find_rows(inputs)
            with self.trials.counted(rehearsal):
                self._check(rehearsal, step)
        except UnreadableError as error:
            problem = error
        except ValueError as error:
            if num_processes() == 1 or type(error) is not ValueError:
                raise
            problem = error
        self.trials.step(inputs).finish()
        problems = [of_process for of_process in gather_objects(problem) if of_process is not None]
        for of_process in problems:
            if not isinstance(of_process, UnreadableError):
                raise of_process
        return problems[0] if problems else None

    def _find_rows(self, inputs: list[Inputs]) -> Rehearsal:
        """Find out whose rows are whose, and write it into the book."""
        rehearsal = self._search.find(inputs, self.book)
        if rehearsal.examples.total == 1:
            return rehearsal
        self.book.take(rehearsal.book)
        rehearsal.book = self.book
        self._tried |= rehearsal.recorded_keys
        is_silent = not rehearsal.recorded_keys <= self.book.verified
        self._schedule.is_due = is_silent and self._silent_batches < _MOST_SILENT
        self._silent_batches += is_silent
        if rehearsal.changed:
            self._report_moved(rehearsal.changed)
        if rehearsal.undecided and rehearsal.has_moved:
            self._undecided_batches += 1
            if self._undecided_batches >= _MOST_SILENT:
                rehearsal.refuse_undecided(_MOST_SILENT)
        return rehearsal

    def _check(self, rehearsal: Rehearsal, step: int) -> None:
        """Check what is read off layers against autograd: all examples together, and two of them alone.

        Raises:
            UnreadableError: If parameters are used outside of the layers that they are read off.
        """
        named = dict(self.loop.module.named_parameters())
        covered = {name: named[name] for name in self.capture.coverage.covered}
        if any(hasattr(parameter, "full_tensor") for parameter in covered.values()):  # sharded
            return
        projection, unprojected = self.capture.projection, self._unprojected
        gradients, totals = rehearsal.read(unprojected=unprojected, reduce=reduction(projection))
        self._rereading.reads = rehearsal.reads
        is_checked = self.step_check.compare(
            rehearsal, gradients, totals, covered, projection, step, unprojected=unprojected
        )
        if not is_checked:
            self._schedule.is_due = True

    def _confirm(self, step: int) -> None:
        """Confirm, by exchanging examples once, that rows are where the book has them."""
        give_back_freed_memory()
        inputs = self.trials.inputs()
        if self._search.is_turned and len(inputs) == 1:
            inputs = inputs[0].turned() or inputs
        rehearsal = self._rehearsal(inputs)
        which, moved = self._schedule.draw(), []
        if rehearsal.examples.total > 1:
            try:
                with self.trials.counted(rehearsal):
                    moved = rehearsal.confirm(which)
            except ExchangeError:
                self._schedule.is_due = True  # the next rehearsal finds out which inputs can be exchanged
        self.trials.step(inputs).finish()
        self.rehearsed_at.append(step)
        give_back_freed_memory()
        if moved:
            self._report_moved(moved)

    def _report_moved(self, keys: Sequence[Any]) -> None:
        self._reports.report(
            f"the rows of layer {keys[0].path!r} are not where they were in an earlier batch, so earlier scores may "
            "belong to other examples. The step may sort examples by length, for example, or alternate their order",
            remedy="Order examples in the loader, whose batches carry their ids along, or within the forward of a "
            "module that puts them back",
        )

    # What can't be read

    def _work_around(self, problem: UnreadableError) -> None:
        """Read parameters off outer modules, or leave them out.

        Raises:
            ValueError: If the problem names no parameter that is read.
        """
        seen = self._search.seen | {key.path for key in self.book.verified}
        self.step_check.forget(self.unreadable.work_around(problem, seen))

    def work_around_for_queries(self, problem: UnreadableError, capture: GradientCapture) -> bool:
        """Read parameters that can't be read in the queries' passes off outer modules, or leave them out.

        Args:
            problem: What can't be read.
            capture: The capture of the queries, in which parameters that scores don't cover are left out.

        Returns:
            Whether the parameters that are read in training have changed, too.

        Raises:
            ValueError: When strict, if a parameter that scores cover can't be read.
        """
        scored = self.unreadable.covered(problem)
        if not scored:
            if not problem.names:
                raise problem
            capture.leave_out(problem.names, problem.problem)
            return False
        self._schedule.is_due = True
        self._work_around(problem)
        self.unreadable.require_nothing_left_out()
        if capture is not self.capture:
            widened = self.unreadable.widened
            capture.widen([name for name in scored if name in widened])
            capture.leave_out([name for name in problem.names if name not in widened], problem.problem)
        return True

    # What was found

    def facts(self) -> dict[str, Any]:
        """Describe for the manifest which rows were found, and what was checked."""
        paths: dict[str, list[str]] = {}
        for key, layout in self.book.known.items():
            if key in self.book.verified:
                paths.setdefault(str(layout), []).append(key.path)
        never_checked = self.step_check.never_checked(self.capture.coverage.covered)
        return {
            "found_by": "exchanging examples' inputs, and cutting off examples' gradients",
            "layouts": {layout: sorted(set(of_layout)) for layout, of_layout in paths.items()},
            "rehearsed_before_steps": self.rehearsed_at,
            "passes": dict(self.trials.passes),
            "single_examples": {"checked": self.step_check.checked, "never_checked": never_checked},
            "read_off_outer_modules": self.unreadable.widened,
            "left_out": self.unreadable.left_out,
        }

    def report_never_checked(self) -> None:
        """Tell the user, when training ends, which parameters could not be checked.

        Raises:
            SelfCheckError: When strict, if the last steps have reordered rows.
        """
        self._look_for_moved_rows()
        if self.rehearsed_at:
            self.step_check.report_never_checked(self.capture.coverage.covered)
