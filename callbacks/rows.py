"""Whose rows are whose in the training step, found out by rehearsing it; and what is read, held against autograd.

A batch of at least two examples is rehearsed before its training step: the first one, one with layers that have not
run before, one after which a parameter has a gradient for the first time, and a few seeded ones later on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from ftrace.callbacks.batches import batches_in
from ftrace.callbacks.exchange import Inputs, find_inputs
from ftrace.callbacks.processes import gather_objects, num_processes, sum_over_processes
from ftrace.callbacks.quiet_step import QuietStep, RandomState
from ftrace.callbacks.self_check import Failures, compare_gradients, projected
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from ftrace.gradients import (
    Examples,
    GradientCapture,
    LayoutBook,
    Recording,
    Rehearsal,
    Rows,
    Shared,
    UnreadableError,
)

_CONFIRM_EVERY = 100  # steps, at first: two forward passes are less than one step
_CHECK_EVERY = 800  # a whole check costs some seven steps
_MOST_SILENT = 3  # batches, and optimizer steps, after which layers are looked at that nothing reached before


class RowFinder:
    """Rehearses the training step of one run.

    Args:
        trainer: The trainer.
        pl_module: The module.
        capture: What listens to training.
        parameters: Those that scores see, by name.
        id_key: The batch's key of the examples' ids.
        who: Who asks.
        failures: Where checks report; None without checks.
        strict: Whether a parameter that can't be read is an error, and not left out.
        seed: Of what is looked at, and when.
        coarse: Whether passes are in half precision.
        query_rows: Finds out whose rows are whose in the queries' passes, whose losses tell; None if it can't.
        or_else: What else can be done about a parameter that can't be read, beside leaving it out.

    Attributes:
        book: Whose rows are whose.
        checked: Parameters that were held against autograd with a gradient, by name, and the step.
        left_out: Parameters that could not be read, and why.
        widened: Parameters that are read off a module further out.
        passes: Forward and backward passes that rehearsals have run.
        rehearsed_at: Steps before which there was one.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
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
    ) -> None:
        self.trainer = trainer
        self.pl_module = pl_module
        self.capture = capture
        self.id_key = id_key
        self.who = who
        self.failures = failures
        self.strict = strict
        self.coarse = coarse
        self.query_rows = query_rows
        self.or_else = or_else
        self.book = LayoutBook()
        self.checked: dict[str, int] = {}
        self.left_out: dict[str, str] = {}
        self.widened: dict[str, str] = {}
        self.passes: Counter[str] = Counter()
        self.rehearsed_at: list[int] = []
        self._generator = torch.Generator().manual_seed(seed)
        self._is_due = True
        self._next_confirmation = self._within(_CONFIRM_EVERY)
        self._next_check = self._within(_CHECK_EVERY)
        self._tried: set[Any] = set()
        self._again: set[Any] = set()
        self._seen: set[str] = set()
        self._is_silent = False
        self._silent_batches = 0
        self._silent_steps = 0
        self._first_problem: dict[str, str] = {}
        self._now: tuple[Any, int, Examples, RandomState] | None = None

    def _within(self, every: int, after: int = 0) -> int:
        return after + every + int(torch.randint(every, (), generator=self._generator))

    # Before the training step

    def before_batch(
        self, batch: Any, batch_idx: int, count: int, sizes: Sequence[int], step: int, *, whole: bool
    ) -> bool:
        """Rehearse the step on a batch, if it is time to.

        Args:
            batch: The batch.
            batch_idx: Its index.
            count: Examples in it.
            sizes: Of the batches of several dataloaders that it is made of.
            step: The optimizer step that is next.
            whole: Whether gradients are kept whole although the capture projects them.

        Returns:
            Whether other parameters are read from here on, or off other modules.

        Raises:
            ValueError: When strict, if a parameter can't be read; if the batch does not hold its examples.
            SelfCheckError: When strict, if what is read is not what autograd finds.
        """
        examples = Examples(count, tuple(sizes) if len(sizes) > 1 else ())
        self._now = batch, batch_idx, examples, RandomState()
        self._whole = whole
        many = examples.total > 1
        if _any_process(self._is_due and (many or not self.rehearsed_at)):
            return self._rehearse(step)
        if self.failures is not None and step >= self._next_check:
            self._next_check = self._within(_CHECK_EVERY, step + step // 2)
            self._next_confirmation = max(self._next_confirmation, step + _CONFIRM_EVERY)
            return self._rehearse(step)
        if self.failures is not None and step >= self._next_confirmation:
            self._next_confirmation = self._within(_CONFIRM_EVERY, step + step)
            self._confirm(step)
        return False

    def before_backward(self, recording: Recording, loss: Tensor, step: int) -> None:
        """Rehearse the step if layers have run that were not heard in a rehearsal; then prepare the recording.

        Raises:
            ValueError: As :meth:`before_batch`; or if parameters turn out to be unreadable within a step.
        """
        starts = [] if loss.grad_fn is None else [loss.grad_fn]
        recording.prepare(starts)
        recording.of_pass.open = set()
        # What was seen before is in another shape, or used in another way, and can be looked at again.
        new = {key for key in recording.unknown() if key not in self._tried or key in self.book.verified}
        if _any_process(bool(new)):
            assert self._now is not None
            read = dict(self.widened)
            self._again = new & self.book.verified
            changed = self._rehearse(step) if self._now[2].total > 1 else False
            self._again = set()
            if changed:  # hooks of other layers have not heard this forward pass
                names = [name for name, path in self.widened.items() if read.get(name) != path]
                left_out = ", ".join(f'"!{name}"' for name in names)
                raise ValueError(
                    f"{self.who}: at step {step} layers run that had not run before, and their parameters can't be "
                    f"read off them: {', '.join(sorted({key.path for key in new})[:3])}. Leave them out with "
                    f'parameters=("*", {left_out})'
                )
            recording.prepare(starts)
            self._tried |= set(recording.unknown())

    def after_backward(self, recording: Recording) -> None:
        """Whether something was seen with a gradient that is still to be looked at."""
        if recording.of_pass.open:
            self._is_due = True

    def before_step(self, parameters: dict[str, nn.Parameter]) -> None:
        """What may have a gradient for the first time now is looked at in the next batch of several examples."""
        if self._is_silent and self._silent_steps < _MOST_SILENT:  # a head that begins at zero does so no more
            self._silent_steps += 1
            self._is_due = True
        if self._is_due or self.failures is None or len(self.checked) >= len(parameters):
            return
        for name, parameter in parameters.items():
            if name not in self.checked and parameter.grad is not None and bool(parameter.grad.any()):
                self._is_due = True
                return

    # Rehearsals

    def _rehearsal(self, inputs: Sequence[Inputs]) -> Rehearsal:
        assert self._now is not None
        loose = any(one.loose for one in inputs)
        return Rehearsal(self.capture, self._step(inputs), self._now[2], self.book, loose, self._again)

    def _step(self, inputs: Sequence[Inputs]) -> QuietStep:
        assert self._now is not None
        batch, batch_idx, _, begins = self._now
        return QuietStep(self.trainer, self.pl_module, batch, batch_idx, inputs, self.id_key, begins)

    def _inputs(self) -> list[Inputs]:
        assert self._now is not None
        batch, _, examples, _ = self._now
        several = batches_in(batch, self.id_key)
        counts = examples.groups or (examples.total,)
        batches = [batch] if several is None else list(several.values())
        counts = tuple(count for count in counts if count) if several is not None else counts
        found = [find_inputs(one, count, (self.id_key,)) for one, count in zip(batches, counts, strict=True)]
        for inputs in found:
            if not inputs.axes:
                shapes = {".".join(map(str, place)): shape for place, shape in inputs.shapes.items()}
                raise ValueError(
                    f'{self.who}: the batch has {inputs.count} ids under "{self.id_key}", and nothing else in it has '
                    f"an axis of {inputs.count}, so nobody can tell whose rows are whose: found {shapes}. Give an id "
                    "for each row that the loader yields: one for a row into which several texts are packed, and as "
                    "many as rows otherwise"
                )
        return found

    def _rehearse(self, step: int) -> bool:
        """Find out whose rows are whose, and check; until all that is left can be read."""
        self.rehearsed_at.append(step)
        self._is_due = False
        changed = False
        inputs = self._inputs()
        while True:
            problem = self._try(inputs, step)
            if problem is None:
                break
            changed = self._yield_to(problem) or changed
        return changed

    def _try(self, inputs: list[Inputs], step: int) -> UnreadableError | None:
        problem: UnreadableError | None = None
        try:
            rehearsal = self._find_rows(inputs)
            with self._counted(rehearsal):
                self._hold(rehearsal, step)
        except UnreadableError as error:
            problem = error
        self._step(inputs).finish()
        everywhere = [one for one in gather_objects(problem) if one is not None]
        return everywhere[0] if everywhere else None

    def _find_rows(self, inputs: list[Inputs]) -> Rehearsal:
        """Find out whose rows are whose.

        Which of a batch's tensors hold examples, and along which axis, is tried where several may be. Since layers that
        mix examples look alike, such a trial counts only where the queries tell the same.
        """
        first: UnreadableError | None = None
        for trial in [inputs, *([one] for one in (inputs[0].others() if len(inputs) == 1 else []))]:
            rehearsal = self._rehearsal(trial)
            if rehearsal.examples.total == 1:
                return rehearsal
            rehearsal.book = self.book.copy()
            try:
                with self._counted(rehearsal):
                    rehearsal.find_rows()
            except UnreadableError as error:
                first = first or error
                self._seen |= {key.path for key in rehearsal.book.verified}
                continue
            if trial is not inputs and not self._queries_agree(rehearsal.book):
                continue
            inputs[:] = trial
            self.book.take(rehearsal.book)
            rehearsal.book = self.book
            self._tried |= rehearsal.heard_keys
            self._is_silent = not rehearsal.heard_keys <= self.book.verified
            self._is_due = self._is_silent and self._silent_batches < _MOST_SILENT
            self._silent_batches += self._is_silent
            if rehearsal.changed:
                self._report_moved(rehearsal.changed)
            return rehearsal
        assert first is not None
        raise first

    def _queries_agree(self, book: LayoutBook) -> bool:
        of_queries = self.query_rows()
        if of_queries is None:
            return False
        both = [key for key in book.verified if key in of_queries.verified]
        return bool(both) and all(_same_axis(book.known[key], of_queries.known[key]) for key in both)

    @contextmanager
    def _counted(self, rehearsal: Rehearsal) -> Iterator[None]:
        before = Counter(forward=rehearsal.forwards, backward=rehearsal.backwards)
        try:
            yield
        finally:
            self.passes += Counter(forward=rehearsal.forwards, backward=rehearsal.backwards) - before

    def _hold(self, rehearsal: Rehearsal, step: int) -> None:
        """Hold what is read off layers against autograd: all examples together, and two of them alone.

        Raises:
            UnreadableError: If parameters are used outside of the layers that they are read off.
        """
        named = dict(self.pl_module.named_parameters())
        covered = {name: named[name] for name in self.capture.coverage.covered}
        if any(hasattr(parameter, "full_tensor") for parameter in covered.values()):  # sharded
            return
        gradients, totals = rehearsal.read(whole=self._whole)
        projection = None if self._whole else self.capture.projection
        read = {name: gradients.total(name) for name in gradients.parts}
        expected = projected(totals, projection)
        if not all(bool(total.isfinite().all()) for total in expected.values()):
            self._is_due = True
            return
        magnitudes = {name: float((gradients.square_norms([name]).sum() * len(gradients)).sqrt()) for name in read}
        wrong = compare_gradients(read, expected, magnitudes, coarse=self.coarse)
        if wrong:
            raise _used_elsewhere(wrong, covered)
        if rehearsal.examples.total < 2 or not rehearsal.is_complete:
            self._is_due = True
            return
        if self.failures is not None:
            self._hold_alone(rehearsal, gradients, projection)
        seen = [name for name, total in expected.items() if bool(total.any())]
        self.checked |= dict.fromkeys((name for name in seen if name not in self.checked), step)

    def _hold_alone(self, rehearsal: Rehearsal, gradients: Any, projection: Any) -> None:
        assert self.failures is not None
        for example in torch.randperm(rehearsal.examples.total, generator=self._generator)[:2].tolist():
            expected = projected(rehearsal.alone(example), projection)
            read = {name: gradients.dense(name, example, example + 1)[0] for name in gradients.parts}
            wrong = compare_gradients(read, expected, coarse=self.coarse)
            if wrong:
                self.failures.report(
                    f"the gradient of the batch's example {example} for {wrong[0]!r}, read off its layers, is not what "
                    "autograd gives. A layer may mix examples, or the loss may have a term of no example"
                )

    def _confirm(self, step: int) -> None:
        inputs = self._inputs()
        rehearsal = self._rehearsal(inputs)
        which, moved = int(torch.randint(2**31, (), generator=self._generator)), []
        if rehearsal.examples.total > 1:
            with self._counted(rehearsal):
                moved = rehearsal.confirm(which)
        self._step(inputs).finish()
        self.rehearsed_at.append(step)
        if moved:
            self._report_moved(moved)

    def _report_moved(self, keys: Sequence[Any]) -> None:
        if self.failures is not None:
            self.failures.report(
                f"the rows of layer {keys[0].path!r} are not where they were in an earlier batch, so scores of before "
                "may be of other examples. The step may order them by their length, say, or at random",
                remedy="Order examples in the loader, whose batches carry their ids along",
            )

    # What can't be read

    def _yield_to(self, problem: UnreadableError) -> bool:
        """Read parameters off modules further out, or leave them out.

        Raises:
            ValueError: When strict, if that can't be done.
        """
        names = [name for name in problem.names if name in self.capture.coverage.covered]
        for name in names:
            self._first_problem.setdefault(name, str(problem))
        moved = self.capture.widen(names, self._seen | {key.path for key in self.book.verified})
        self.widened |= moved
        stuck = [name for name in names if name not in moved]
        if stuck or not names:
            first = self._first_problem[stuck[0]] if stuck else str(problem)
            alike = [name for name in names if self._first_problem[name] == first]
            self.leave_out(alike, first)
        self._forget([*names, *moved])
        return True

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
        covered = set(self.capture.coverage.covered)
        scored = [name for name in problem.names if name in covered]
        if not scored:
            if not problem.names:
                raise problem
            listens.leave_out(problem.names, str(problem))
            return False
        self._is_due = True
        changed = self._yield_to(problem)
        if listens is not self.capture:
            listens.widen([name for name in scored if name in self.widened])
            listens.leave_out([name for name in problem.names if name not in self.widened], str(problem))
        return changed

    def leave_out(self, names: Collection[str], reason: str) -> None:
        """Read parameters no more.

        Raises:
            ValueError: When strict.
        """
        if self.strict or not names:
            raise ValueError(f"{self.who}: {reason}{self.or_else}.")
        rank_zero_warn(f"{self.who}: {reason}. Left out")
        self.capture.leave_out(names, reason)
        self.left_out |= dict.fromkeys(names, reason)
        self.widened = {name: path for name, path in self.widened.items() if name not in names}

    def _forget(self, names: Collection[str]) -> None:
        self.checked = {name: step for name, step in self.checked.items() if name not in names}

    # What was found

    def facts(self) -> dict[str, Any]:
        """For the manifest: what was checked, and how."""
        orders: dict[str, list[str]] = {}
        for key, rows in self.book.known.items():
            if key in self.book.verified:
                orders.setdefault(str(rows), []).append(key.path)
        return {
            "found_by": "exchanging examples' inputs, and cutting off examples' gradients",
            "layouts": {order: sorted(set(paths)) for order, paths in orders.items()},
            "rehearsed_before_steps": self.rehearsed_at,
            "passes": dict(self.passes),
            "single_examples": {"checked": self.checked, "never_checked": self.never_checked()},
            "read_off_outer_modules": self.widened,
            "left_out": self.left_out,
        }

    def say_what_was_never_checked(self) -> None:
        """When training ends: name what nobody could look at."""
        names = self.never_checked()
        if names and self.rehearsed_at and self.failures is not None:
            shown = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            rank_zero_info(
                f"{self.who} self_check: {len(names)} parameters were never held against autograd, since they had no "
                f"gradient in any batch of several examples that was looked at: {shown}. The manifest has all of them"
            )

    def never_checked(self) -> list[str]:
        """Covered parameters that had no gradient in any batch of several examples that was rehearsed."""
        return [name for name in self.capture.coverage.covered if name not in self.checked]


def _same_axis(first: Rows, second: Rows) -> bool:
    if isinstance(first, Shared) or isinstance(second, Shared):
        return isinstance(first, Shared) and isinstance(second, Shared)
    return first.axis == second.axis


def _used_elsewhere(names: Sequence[str], covered: dict[str, nn.Parameter]) -> UnreadableError:
    hooked = [name for name in names if covered[name]._backward_hooks]
    if hooked:
        problem = f"{hooked[0]!r} has a hook of yours that changes its gradient"
    else:
        problem = (
            f"{names[0]!r} is used outside of the modules that it is read off, such as in a penalty in the training "
            "step (use weight_decay)"
        )
    left_out = ", ".join(f'"!{name}"' for name in names)
    return UnreadableError(f'{problem}. Leave it out with parameters=("*", {left_out})', names)


def _any_process(here: bool) -> bool:
    if num_processes() == 1:
        return here
    return bool(sum_over_processes(torch.tensor([int(here)], device=_device())).item())


def _device() -> torch.device:
    backend = torch.distributed.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
