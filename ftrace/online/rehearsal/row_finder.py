"""Whose rows are whose in the training step, found out by rehearsing it; and what is read, held against autograd.

A batch of at least two examples is rehearsed before its training step: the first one, one with layers that have not
run before, one after which a parameter has a gradient for the first time, and a few seeded ones later on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ftrace.gradients import (
    Examples,
    ExchangeError,
    GradientCapture,
    Key,
    LayoutBook,
    PerExampleGradients,
    Recording,
    Rehearsal,
    UnreadableError,
)
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

_MOST_SILENT = 3  # batches that are rehearsed for layers that neither inputs nor gradients reach


class RowFinder:
    """Rehearses the training step of one run.

    Args:
        loop: The training loop.
        capture: Records training.
        id_key: The batch's key of the examples' ids.
        who: Whose messages these are.
        failures: Where checks report; None without checks.
        strict: Whether a parameter that can't be read is an error, and not left out.
        seed: Of what is looked at, and when.
        coarse: Whether passes are in half precision.
        query_rows: Finds out whose rows are whose in the queries' passes, whose losses tell; None if it can't.
        or_else: What else can be done about a parameter that can't be read, beside leaving it out.
        see_coverage: Is called when other parameters are read from here on, or off other modules.

    Attributes:
        book: Whose rows are whose.
        step_check: What was held against autograd.
        unreadable: Parameters that turn out not to be readable off their layers.
        trials: The steps that are tried out.
        rehearsed_at: Steps before which there was one.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        capture: GradientCapture,
        id_key: str,
        who: str,
        failures: Failures | None,
        *,
        strict: bool,
        seed: int,
        coarse: bool,
        query_rows: Callable[[], LayoutBook | None] = lambda: None,
        or_else: str = "",
        see_coverage: Callable[[], None] = lambda: None,
    ) -> None:
        self.loop = loop
        self.failures = failures
        self.see_coverage = see_coverage
        self.book = LayoutBook()
        self.unreadable = UnreadableParameters(capture, who, strict=strict, or_else=or_else)
        self.trials = TrialSteps(loop, id_key, who)
        self.rehearsed_at: list[int] = []
        self._schedule = RehearsalSchedule(seed)
        self._search = RowSearch(self.trials, self._rehearsal, query_rows)
        self.step_check = StepCheck(loop, who, failures, torch.Generator().manual_seed(seed), coarse=coarse)
        self._watch = RowWatch()
        self._reports = failures or Failures(strict=strict, who=who, patterns=capture.coverage.patterns)
        self._tried: set[Key] = set()
        self._again: set[Key] = set()  # outputs that were seen, and are used in a way that was not
        self._silent_batches = 0
        self._undecided_batches = 0
        self._looks_in_vain = 0
        self._some_unknown = False  # to some process, in the pass that is under way
        self._rereading = Rereading(who)

    @property
    def capture(self) -> GradientCapture:
        """Records training."""
        return self.unreadable.capture

    # Before the training step

    def before_batch(
        self, batch: Any, batch_idx: int, count: int, sizes: Sequence[int], step: int, *, whole: bool
    ) -> None:
        """Rehearse the step on a batch, if it is time to.

        Args:
            batch: The batch.
            batch_idx: Its index.
            count: Examples in it.
            sizes: Of the batches of several dataloaders that it is made of.
            step: The optimizer step that is next.
            whole: Whether gradients are kept whole although the capture projects them.

        Raises:
            ValueError: When strict, if a parameter can't be read; if the batch does not hold its examples.
            SelfCheckError: When strict, if what is read is not what autograd finds.
        """
        examples = Examples(count, tuple(sizes) if len(sizes) > 1 else ())
        self.trials.begin(batch, batch_idx, examples)
        self._whole = whole
        self._look_for_moved_rows()
        self._rereading.begin_batch()
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
        """Listen to a pass of the training step for rows that it has moved."""
        self._watch.watch(recording, self.trials.rows, self.book)

    def _look_for_moved_rows(self) -> None:
        moved = self._watch.moved()
        if moved:
            self._report_moved(moved)

    def before_backward(self, recording: Recording, loss: Tensor, step: int) -> None:
        """Rehearse the step if layers have run that did not run in any rehearsal; then prepare the recording.

        Raises:
            ValueError: As :meth:`before_batch`.
        """
        self._rereading.begin_pass(recording)
        starts = [] if loss.grad_fn is None else [loss.grad_fn]
        recording.prepare(starts)
        recording.of_pass.open = set()
        # What was seen before is in another shape, or used in another way, and can be looked at again.
        new = {key for key in recording.unknown() if key not in self._tried or key in self.book.verified}
        is_other = self._schedule.is_another_graph(starts, step)
        any_new, self._some_unknown, any_other = any_process([bool(new), bool(recording.unknown()), is_other])
        if any_new:
            self._rehearse_anew(step, new)
        elif any_other:  # what the step does differs, so rows may be elsewhere
            self._confirm(step)
        else:
            return
        self.capture.resume(recording)
        recording.prepare(starts)
        if any_new:
            self._tried |= set(recording.unknown())

    def after_backward(self, recordings: Sequence[Recording], step: int) -> None:
        """Look once more at what nobody knows enough of. All processes must call it.

        A layer may have a gradient now, and none in all rehearsals, so that nobody knows whose rows are whose; or it
        may turn out only now that a parameter must be read off another module, which has not been listened to. Then
        the step is rehearsed, and :meth:`read` takes what that has read.

        Args:
            recordings: That the backward pass may have gone through; the last one was announced.
            step: The optimizer step.

        Raises:
            ValueError: As :meth:`before_batch`.
        """
        opened = {key: one.outputs[key] for one in recordings for key in one.of_pass.open or ()}
        if self._some_unknown and self._looks_in_vain < _MOST_SILENT and any(any_process([bool(opened)])):
            self._rehearse_anew(step, opened)
            self._rereading.names |= {name for output in opened.values() for name in output.layer.names.values()}
            self._looks_in_vain += any(any_process([not opened.keys() <= self.book.verified]))
        for one in recordings if self._rereading.names else ():
            for key in self.book.verified.intersection(one.of_pass.unread):
                del one.of_pass.unread[key]
        reads_all = self._some_unknown or num_processes() == 1
        if reads_all and self.unreadable.leave_out_unread(recordings):
            self.see_coverage()

    def read(self, recording: Recording) -> PerExampleGradients:
        """What a backward pass has brought, example by example.

        Raises:
            ValueError: If the step has run other backward passes than when it was rehearsed.
        """
        gradients = recording.gradients()
        if not self._rereading.names and not self.unreadable.left_out:
            return gradients
        return self._rereading.replace(gradients, recording, self.capture.coverage.covered)

    def _rehearse_anew(self, step: int, opened: Collection[Key]) -> None:
        before = dict(self.unreadable.widened)
        self._again = self.book.verified.intersection(opened)
        self._rehearse(step)
        self._again = set()
        self._rereading.names |= {name for name, path in self.unreadable.widened.items() if before.get(name) != path}

    def before_step(self, parameters: dict[str, nn.Parameter]) -> None:
        """A parameter that has a gradient for the first time is looked at in the next batch of several examples."""
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
        """Find out whose rows are whose, and check; until all that is left can be read."""
        self.rehearsed_at.append(step)
        self._schedule.is_due = False
        changed = False
        inputs = self.trials.inputs()
        try:
            while (problem := self._try(inputs, step)) is not None:
                self._yield_to(problem)
                changed = True
        except (ValueError, SelfCheckError):
            self.unreadable.require_nothing_left_out()  # which may be why
            raise
        self.unreadable.require_nothing_left_out()
        if changed:
            self.see_coverage()

    def _try(self, inputs: list[Inputs], step: int) -> UnreadableError | None:
        """What can't be read, on any process.

        Raises:
            ValueError: On all processes, if one of them refuses the step.
        """
        problem: ValueError | None = None
        try:
            rehearsal = self._find_rows(inputs)
            with self.trials.counted(rehearsal):
                self._hold(rehearsal, step)
        except UnreadableError as error:
            problem = error
        except ValueError as error:
            if num_processes() == 1 or type(error) is not ValueError:
                raise
            problem = error
        self.trials.step(inputs).finish()
        everywhere = [one for one in gather_objects(problem) if one is not None]
        for one in everywhere:
            if not isinstance(one, UnreadableError):
                raise one
        return everywhere[0] if everywhere else None

    def _find_rows(self, inputs: list[Inputs]) -> Rehearsal:
        """Find out whose rows are whose, and note it in the book."""
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

    def _hold(self, rehearsal: Rehearsal, step: int) -> None:
        """Hold what is read off layers against autograd: all examples together, and two of them alone.

        Raises:
            UnreadableError: If parameters are used outside of the layers that they are read off.
        """
        named = dict(self.loop.module.named_parameters())
        covered = {name: named[name] for name in self.capture.coverage.covered}
        if any(hasattr(parameter, "full_tensor") for parameter in covered.values()):  # sharded
            return
        gradients, totals = rehearsal.read(unprojected=self._whole)
        self._rereading.reads = rehearsal.reads
        projection = None if self._whole else self.capture.projection
        if not self.step_check.compare(rehearsal, gradients, totals, covered, projection, step):
            self._schedule.is_due = True

    def _confirm(self, step: int) -> None:
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
                self._schedule.is_due = True  # a rehearsal finds out what can be exchanged
        self.trials.step(inputs).finish()
        self.rehearsed_at.append(step)
        if moved:
            self._report_moved(moved)

    def _report_moved(self, keys: Sequence[Any]) -> None:
        self._reports.report(
            f"the rows of layer {keys[0].path!r} are not where they were in an earlier batch, so scores of before may "
            "be of other examples. The step may order them by their length, say, or in one way or another by turns",
            remedy="Order examples in the loader, whose batches carry their ids along, or within the forward of a "
            "module that puts them back",
        )

    # What can't be read

    def _yield_to(self, problem: UnreadableError) -> None:
        """Read parameters off modules further out, or leave them out.

        Raises:
            ValueError: When strict, if that can't be done.
        """
        seen = self._search.seen | {key.path for key in self.book.verified}
        self.step_check.forget(self.unreadable.yield_to(problem, seen))

    def yield_to_queries(self, problem: UnreadableError, listens: GradientCapture) -> bool:
        """Read what queries use elsewhere off modules further out, or leave it out.

        Args:
            problem: What a pass over queries ran into.
            listens: What listens to it; parameters that scores don't see are gaps in it from here on.

        Returns:
            Whether other parameters are read in training, too.

        Raises:
            ValueError: When strict, if a parameter that scores see can't be read.
        """
        scored = self.unreadable.covered(problem)
        if not scored:
            if not problem.names:
                raise problem
            listens.leave_out(problem.names, problem.problem)
            return False
        self._schedule.is_due = True
        self._yield_to(problem)
        self.unreadable.require_nothing_left_out()
        if listens is not self.capture:
            widened = self.unreadable.widened
            listens.widen([name for name in scored if name in widened])
            listens.leave_out([name for name in problem.names if name not in widened], problem.problem)
        return True

    # What was found

    def facts(self) -> dict[str, Any]:
        """For the manifest: what was checked, and how."""
        orders: dict[str, list[str]] = {}
        for key, rows in self.book.known.items():
            if key in self.book.verified:
                orders.setdefault(str(rows), []).append(key.path)
        never_checked = self.step_check.never_checked(self.capture.coverage.covered)
        return {
            "found_by": "exchanging examples' inputs, and cutting off examples' gradients",
            "layouts": {order: sorted(set(paths)) for order, paths in orders.items()},
            "rehearsed_before_steps": self.rehearsed_at,
            "passes": dict(self.trials.passes),
            "single_examples": {"checked": self.step_check.checked, "never_checked": never_checked},
            "read_off_outer_modules": self.unreadable.widened,
            "left_out": self.unreadable.left_out,
        }

    def say_what_was_never_checked(self) -> None:
        """When training ends: name what nobody could look at.

        Raises:
            SelfCheckError: When strict, if the last steps have moved rows.
        """
        self._look_for_moved_rows()
        if self.rehearsed_at:
            self.step_check.say_what_was_never_checked(self.capture.coverage.covered)
