"""One training run that is traced: from backward passes and optimizer steps to scores, ledger and checks.

The loop says what happens; this decides what it means. A step of an optimizer is

    begun    its gradients are complete (unclipped under automatic optimization, final under manual optimization)
    ended    it was taken: second moments hold its gradient, and its products can be booked
    skipped  it was begun and never ended: a loss scaler has left it out
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ftrace.gradients import PerExampleGradients, Recording, UnreadableError, project
from ftrace.online.batches import batch_ids, batch_sizes
from ftrace.online.checks.conservation import Conservation
from ftrace.online.checks.failures import Failures
from ftrace.online.checks.query_check import QueryCheck
from ftrace.online.hooks import Hooks
from ftrace.online.ledger import LedgerKeeper
from ftrace.online.loop import TrainingLoop
from ftrace.online.messages import warn
from ftrace.online.optimizers.clipping import Clipping
from ftrace.online.optimizers.followed_optimizer import FollowedOptimizer, keeps_gradients
from ftrace.online.optimizers.trained_parameters import TrainedParameters
from ftrace.online.processes import num_processes
from ftrace.online.queries.query_pass import QueryPass, require_shared_parameters
from ftrace.online.queries.refresher import QueryRefresher
from ftrace.online.rehearsal.row_finder import RowFinder
from ftrace.online.repeated_ids import RepeatedIds
from ftrace.online.scoring.contributions import StepTaken
from ftrace.online.scoring.scoring import Scoring
from ftrace.online.settings import TraceSettings
from ftrace.scores import ScoreAccumulator


class TracedRun:
    """A traced run, from its first batch to its last step.

    Args:
        loop: The training loop.
        queries: The queries.
        settings: What is traced, and how.
        hooks: The hooks on the module, attached already.
        who: Whose messages these are.

    Attributes:
        example_names: Names of the examples' ids that were made from names.
        first_step: The step with which tracing began.
        taken: Optimizer steps begun since, over all optimizers.
        unfrozen: By step, names of parameters that were covered from there on.
    """

    def __init__(self, loop: TrainingLoop, queries: QueryPass, settings: TraceSettings, hooks: Hooks, who: str) -> None:
        self.loop = loop
        self.queries = queries
        self.settings = settings
        self.hooks = hooks
        self.who = who
        self.rules = rules = settings.rules
        self.failures: Failures | None = None
        if settings.self_check:
            self.failures = Failures(strict=settings.strict, who=who, patterns=settings.parameters)
        self.example_names: dict[int, str] = {}
        self.first_step = loop.step
        self.taken = 0
        self.steps_left_out: list[int] = []
        self.steps_skipped: list[int] = []
        self.unfrozen: dict[int, list[str]] = {}
        self._repeated_ids = RepeatedIds(loop, settings.id_key, strict=settings.strict, shared=settings.shared_ids)
        self._with_gradient: set[str] | None = set()  # parameters, in the first batch
        self._recordings: list[Recording] = []
        self._batch_ids = torch.empty(0)
        self._batch_sizes: Sequence[int] = ()
        self.clipping = Clipping(loop)
        self.parameters = TrainedParameters(
            loop, hooks, rules, self.failures, strict=settings.strict, seed=settings.seed
        )
        covered = self.parameters.covered.by_name
        dtypes = {p.dtype for p in covered.values()}
        dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        self.sums = ScoreAccumulator(rules.kinds, queries.ids.tolist(), dtype, settings.candidates)
        batches = settings.refresh_every_n_steps * loop.batches_per_step
        divides = any(optimizer.is_elementwise for optimizer in self.parameters.followed)
        self.scoring = Scoring(rules, self.sums, list(covered), batches, divides=divides)
        self.ledger: LedgerKeeper | None = None
        if settings.ledger:
            self.ledger = LedgerKeeper(
                frozenset(covered),
                trapezoid=rules.trapezoid,
                accounts="update" in rules.kinds,
                exact_momentum=rules.exact_momentum,
                projection=rules.projection,
                projects_all=rules.projection is not None and not self.scoring.keeps_queries_whole,
            )
        is_sharded = any(hasattr(p, "full_tensor") for p in covered.values())
        self.query_check = None if is_sharded else self.parameters.make_check(QueryCheck, covered)
        self.refresher = QueryRefresher(
            loop,
            queries,
            hooks,
            self.parameters,
            self.scoring,
            self.ledger,
            self.query_check,
            every=settings.refresh_every_n_steps,
            staleness_every=settings.staleness_every,
            yield_to=self._yield_to_queries,
            who=who,
        )
        self.rows = RowFinder(
            loop,
            hooks.training,
            settings.id_key,
            who,
            self.failures,
            strict=settings.strict,
            seed=settings.seed,
            coarse=self.parameters.is_coarse,
            query_rows=lambda: self.refresher.rows(self.step),
            or_else=", or go on without with strict=False",
            see_coverage=self._see_coverage,
        )

    # What is covered

    def _cover_unfrozen(self) -> None:
        """Cover parameters that were unfrozen, or given to an optimizer, since training began."""
        unfrozen = self.parameters.add_unfrozen()
        if not unfrozen:
            return
        self.rows.unreadable.capture = self.hooks.training
        self._see_coverage()
        known = {name for names in self.unfrozen.values() for name in names}
        if not known.issuperset(unfrozen):  # a resumed run knows them already, and their queries' gradients
            self.unfrozen[self.step] = unfrozen
            self.refresher.last_at = None

    def _see_coverage(self) -> None:
        """Let all parts know that other parameters are covered from here on."""
        self.parameters.see_coverage()
        if self.query_check is not None:
            self.query_check.parameters = dict(self.parameters.covered.by_name)
        self.scoring.see(self.parameters.covered.by_name)
        if self.ledger is not None:
            self.ledger.see(self.parameters.all(), frozenset(self.parameters.covered.by_name))

    def _yield_to_queries(self, error: UnreadableError) -> None:
        if self.rows.yield_to_queries(error, self.hooks.queries):
            self._see_coverage()

    # Passes

    @property
    def step(self) -> int:
        """The optimizer step that is next, counted over all optimizers."""
        return self.first_step + self.taken

    def begin_batch(self, batch: Any, batch_idx: int, added_queries: list[Any]) -> None:
        """Prepare for a batch of examples.

        Args:
            batch: The batch.
            batch_idx: Its index.
            added_queries: Sources of queries that were added; emptied as soon as they can be traced.
        """
        key = self.settings.id_key
        example_ids, sizes = batch_ids(batch, key, "id_key", self.example_names), batch_sizes(batch, key)
        self._repeated_ids.see(example_ids, self.example_names)
        self._cover_unfrozen()
        while added_queries and not any(optimizer.is_open for optimizer in self.parameters.followed):
            self.sums.add_queries(self.refresher.add(added_queries.pop(0), self.step))
        whole = self.scoring.keeps_examples_whole
        self.rows.before_batch(batch, batch_idx, len(example_ids), sizes, self.step, whole=whole)
        if self.refresher.is_due(self.step) or self.refresher.has_new_queries:
            self.refresher.refresh(self.step)
        self._batch_ids, self._batch_sizes = example_ids, sizes
        self._recordings = [self._start_recording()]

    def _start_recording(self) -> Recording:
        whole = self.scoring.keeps_examples_whole
        recording = self.hooks.training.start(
            len(self._batch_ids), unprojected=whole, loaders=self._batch_sizes, book=self.rows.book
        )
        self.rows.watch(recording)
        return recording

    def before_backward(self, loss: Tensor) -> None:
        """Prepare for a backward pass."""
        if not self._recordings:
            return
        self.rows.before_backward(self._recordings[-1], loss, self.step)
        if self.loop.is_manual:
            if self.refresher.is_due(self.step):  # weights may have moved since the batch began
                self.refresher.refresh(self.step)
            for optimizer in self.parameters.followed:
                if optimizer.window and not optimizer.has_gradients():  # they have been set to zero since
                    self._discard(optimizer)

    def after_backward(self) -> None:
        """Read what a backward pass has added to the gradients."""
        if not self._recordings:
            return
        manual = self.loop.is_manual
        self.hooks.training.stop()
        scale = self.loop.loss_scale
        factor = 1 / (scale * num_processes())
        self.rows.after_backward(self._recordings, self.step)
        for recording in self._recordings:
            if len(self._recordings) > 1 and not recording.has_gradients():
                continue
            self._take(self.rows.read(recording), factor)
            if manual:
                recording.forget_gradients()
        if manual:
            for optimizer in self.parameters.followed:
                optimizer.norm_of_backward = optimizer.gradient_norm() / scale
            self._recordings.append(self._start_recording())
        else:
            self._close_recordings()

    def _close_recordings(self) -> None:
        """Let go of what was recorded, and so of the activations."""
        for recording in self._recordings:
            recording.close()
        self._recordings = []

    def _take(self, gradients: PerExampleGradients, factor: float) -> None:
        before_projection = None
        if self.scoring.keeps_examples_whole:
            assert self.rules.projection is not None
            before_projection, gradients = gradients, project(gradients, self.rules.projection)
        self.parameters.covered.note_recorded(gradients.parts)
        if self._with_gradient is not None:
            self._with_gradient.update(gradients.parts)
        for optimizer in self.parameters.followed:
            self._contribute(optimizer, gradients, factor, before_projection)
        self.refresher.staleness.after_backward(gradients, self.scoring.queries)

    def _contribute(
        self,
        optimizer: FollowedOptimizer,
        gradients: PerExampleGradients,
        factor: float,
        before_projection: PerExampleGradients | None,
    ) -> None:
        shares = {s: [n for n in names if n in gradients.parts] for s, names in optimizer.shares().items()}
        shares = {share: names for share, names in shares.items() if names}
        if not shares:
            return
        if optimizer.index in self.parameters.conservation:
            self.parameters.conservation[optimizer.index].add_to_window(gradients, factor)
        contribution = self.scoring.multiply(
            self._batch_ids,
            gradients,
            shares,
            factor,
            elementwise="update" in self.rules.kinds and optimizer.is_elementwise,
            whole=before_projection,
        )
        contribution.refresh = len(self.refresher.steps) - 1
        optimizer.window.append(contribution)
        optimizer.is_open = True

    def end_batch(self) -> None:
        """Close a batch: steps that were begun and not taken have been skipped."""
        self.hooks.training.stop()
        self._close_recordings()
        trained, self._with_gradient = self._with_gradient, None
        if trained and self.refresher.last is not None:
            queried = self.refresher.last.gradients.parts.keys()
            require_shared_parameters(trained, queried, self.who, strict=self.settings.strict)
        for optimizer in self.parameters.followed:
            if optimizer.is_stepping:
                optimizer.is_stepping = False
                self.steps_skipped.append(self.step - 1)
                self._discard(optimizer)

    # Steps

    def begin_window(self) -> None:
        """Forget contributions that no step has used: automatic optimization sets gradients to zero."""
        for optimizer in self.parameters.followed:
            self._discard(optimizer)

    def _discard(self, optimizer: FollowedOptimizer) -> None:
        optimizer.window, optimizer.is_open = [], False
        if optimizer.index in self.parameters.conservation:
            self.parameters.conservation[optimizer.index].discard_window()

    def begin_step(self, optimizer: FollowedOptimizer) -> None:
        """Check and note what an optimizer is about to step with."""
        if optimizer.is_stepping:  # the loop has announced it already, before a loss scaler's decision
            return
        self.parameters.refuse_unknown(optimizer)
        self.parameters.covered.refuse_unrecorded()
        self.rows.before_step(self.parameters.covered.by_name)
        check = self.parameters.conservation.get(optimizer.index)
        wants_norm = (check is not None and check.wants_norm) or self.rules.exact_momentum
        norm = self.clipping.before_step(optimizer, wants_norm=wants_norm)
        optimizer.norm_before_step = norm
        optimizer.note_before_step(steps="update" in self.rules.kinds and optimizer.problem is None)
        if self.ledger is not None:
            self.ledger.before_step(optimizer)
        self.taken += 1
        if check is not None and (optimizer.window or num_processes() > 1) and _is_finite(optimizer):
            check.check_window(
                optimizer.window,
                self.clipping.factor,
                norm,
                self.step - 1,
                is_clipped=self.loop.is_manual,
                look_after=self.clipping.is_measured,
            )

    def end_step(self, optimizer: FollowedOptimizer) -> None:
        """Book a step that was taken."""
        if not optimizer.is_stepping:  # not one that was announced, such as in a closure of the user's own
            return
        optimizer.is_stepping = optimizer.is_open = False
        optimizer.steps_taken += 1
        window = list(optimizer.window)  # under manual optimization, later backward passes may add to it
        if not self.loop.is_manual:
            optimizer.window = []
        self.clipping.after_step(optimizer)
        clip = self.clipping.factor
        given = optimizer.gradients_given(1.0 if self.loop.is_manual else clip)
        steps = optimizer.steps(given) if "update" in self.rules.kinds and optimizer.problem is None else {}
        projection = self.rules.projection
        step = StepTaken(
            self.step - 1,
            optimizer.index,
            optimizer.rates,
            clip,
            steps,
            window,
            self.scoring.moment(self.loop.epoch),
            tuple(name for _, name, _ in optimizer.parameters(covered=True)),
            given=optimizer.as_contribution(given, projection, clip) if steps and projection is not None else None,
        )
        if not _is_finite(optimizer) or not self.scoring.take(step):
            self._leave_out()
        if not self.loop.is_manual:  # otherwise another step may use the same gradients
            for contribution in window:
                contribution.projected, contribution.whitened = {}, {}
        if self.ledger is not None:
            self.ledger.after_step(optimizer, steps, given)
        check = self.parameters.conservation.get(optimizer.index)
        if check is not None and check.expects_gradient and keeps_gradients(optimizer.optimizer):
            self._check_after(check, optimizer)

    def _check_after(self, check: Conservation, optimizer: FollowedOptimizer) -> None:
        norm = optimizer.gradient_norm()
        if not (self.loop.zeroes_gradients_itself and norm == 0):
            check.check_gradient(norm, self.step - 1, self.clipping.factor if self.clipping.is_measured else 1.0)

    def _leave_out(self) -> None:
        """Leave out a step whose contributions are not finite: it would spoil all its examples' scores."""
        if not self.steps_left_out:
            warn(
                f"{self.who}: the contributions of step {self.step - 1} are not finite: the loss or a gradient is "
                "NaN or infinite. Its scores are left out, and so will be those of other such steps; the manifest "
                "counts them"
            )
        self.steps_left_out.append(self.step - 1)

    # Its end

    def finish(self) -> None:
        """Close what is open, since training has ended."""
        if self.taken and self.refresher.last_at != self.step and (self.ledger is not None or self.scoring.pending):
            self.refresher.refresh(self.step)
        self.scoring.finish()

    # State

    def state(self) -> dict[str, Any]:
        """Return everything but the sums, which are as large as the scores."""
        return {
            "names": dict(self.example_names),
            "first_step": self.first_step,
            "taken": self.taken,
            "steps_left_out": list(self.steps_left_out),
            "steps_skipped": list(self.steps_skipped),
            "unfrozen": dict(self.unfrozen),
            "ledger": None if self.ledger is None else self.ledger.state(),
            **self.parameters.state(),
            **self.refresher.state(),
            **self.scoring.state(),
        }

    def load(self, states: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state` was called.

        Args:
            states: Of the processes whose part this one takes up, sums among them.
            shared: Of any process.
        """
        self.first_step, self.taken = shared["first_step"], shared["taken"]
        self.steps_left_out, self.steps_skipped = shared["steps_left_out"], shared["steps_skipped"]
        self.unfrozen = shared["unfrozen"]
        self.parameters.load(shared)
        last = shared["last"]
        self.scoring.load(states, shared, last.gradients, last.losses)
        self.refresher.load(shared)
        for state in states:
            self.example_names |= state["names"]
            self.sums.add_state(state["sums"])
        if self.ledger is not None and shared["ledger"] is not None:
            self.ledger.load(shared["ledger"], last, self.parameters.all())


def _is_finite(optimizer: FollowedOptimizer) -> bool:
    return optimizer.norm_before_step is None or math.isfinite(optimizer.norm_before_step)
