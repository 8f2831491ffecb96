"""One training run that is traced: from backward passes and optimizer steps to scores, ledger and checks.

The callback tells what happens; this decides what it means. A step of an optimizer is

    begun    its gradients are complete (unclipped under automatic optimization, final under manual optimization)
    ended    it has been taken: second moments hold its gradient, and its products can be booked
    skipped  it was begun and never ended: a loss scaler has left it out
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ftrace.gradients import (
    LayoutBook,
    PerExampleGradients,
    Preconditioner,
    Recording,
    UnreadableError,
    project,
)
from ftrace.online.checks.self_check import Conservation, Failures, QueryCheck
from ftrace.online.hooks import Listening
from ftrace.online.ledger import LedgerKeeper, log_interval
from ftrace.online.optimizers.clipping import Clipping
from ftrace.online.optimizers.followed_optimizer import FollowedOptimizer
from ftrace.online.optimizers.trained_parameters import TrainedParameters
from ftrace.online.processes import gather_objects, num_processes
from ftrace.online.queries.query_pass import Compare, NotFiniteError, QueryPass, Refresh, require_shared_parameters
from ftrace.online.rehearsal.row_finder import RowFinder
from ftrace.online.restore.kept_state import KeptState
from ftrace.online.scoring.contributions import StepTaken
from ftrace.online.scoring.rules import ScoringRules
from ftrace.online.scoring.scoring import Scoring
from ftrace.online.scoring.staleness import Staleness
from ftrace.online.training_loop import (
    keeps_gradients,
    loss_scale,
    zeroes_gradients_itself,
)
from ftrace.scores import Candidates, ScoreAccumulator


class TracedRun:
    """Everything about one call of ``trainer.fit``.

    Args:
        trainer: The trainer.
        pl_module: The module.
        queries: The queries.
        rules: How scores are made.
        listening: What listens to the module.
        refresh_every_n_steps: After how many optimizer steps the queries are differentiated anew.
        candidates: Whose scores are kept.
        id_key: The batches' key of the examples' ids.
        strict: Whether what is wrong is an error.
        self_check: Whether to check.
        ledger: Whether to keep one.
        staleness_every: Measure staleness at every so many refreshes; 0: never.
        seed: Of the checks.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        queries: QueryPass,
        rules: ScoringRules,
        listening: Listening,
        *,
        refresh_every_n_steps: int,
        candidates: Candidates,
        id_key: str,
        strict: bool,
        self_check: bool,
        ledger: bool,
        staleness_every: int,
        seed: int,
    ) -> None:
        self.trainer = trainer
        self.pl_module = pl_module
        self.queries = queries
        self.rules = rules
        self.refresh_every_n_steps = refresh_every_n_steps
        self.strict = strict
        self.listening = listening
        self.run_id: str = gather_objects(uuid.uuid4().hex)[0]
        self.failures = Failures(strict=strict, patterns=listening.patterns) if self_check else None
        self.first_step = trainer.global_step
        self.steps_left_out: list[int] = []
        self.steps_skipped: list[int] = []
        self.refreshes: list[int] = []
        self.refreshes_failed: list[int] = []
        self._heard: set[str] | None = set()
        self.query_first_steps: dict[int, int] = {}
        self.unfrozen: dict[int, list[str]] = {}
        self.staleness = Staleness(staleness_every)
        self.refreshed_at: int | None = None
        self.taken = 0  # optimizer steps begun since first_step, over all optimizers
        self.has_queries_to_add = False
        self.clipping = Clipping(trainer, pl_module)
        self._last: Refresh | None = None
        self._recordings: list[Recording] = []
        self._batch_ids = torch.empty(0)
        self._batch_sizes: Sequence[int] = ()
        self._kept = KeptState(pl_module)
        self.parameters = TrainedParameters(
            trainer, pl_module, listening, rules, self.failures, strict=strict, seed=seed
        )
        covered = self.parameters.covered.by_name
        dtypes = {p.dtype for p in covered.values()}
        dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        ids = queries.ids.tolist()
        self.sums = ScoreAccumulator(rules.kinds, ids, dtype, candidates)
        batches = refresh_every_n_steps * trainer.accumulate_grad_batches
        divides = any(one.is_elementwise for one in self.parameters.followed)
        self.scoring = Scoring(rules, self.sums, list(covered), batches, divides=divides)
        self.ledger: LedgerKeeper | None = None
        if ledger:
            accounts = "update" in rules.kinds
            self.ledger = LedgerKeeper(
                frozenset(covered),
                trapezoid=rules.trapezoid,
                accounts=accounts,
                exact_momentum=rules.exact_momentum,
                projection=rules.projection,
                projects_all=rules.projection is not None and not self.scoring.keeps_queries_whole,
            )
        whole = not any(hasattr(p, "full_tensor") for p in covered.values())  # sharded ones are not held
        self.query_check = self.parameters.make_check(QueryCheck, covered) if whole else None
        self.rows = RowFinder(
            trainer,
            pl_module,
            listening.training,
            id_key,
            "OnlineTracIn",
            self.failures,
            strict=strict,
            seed=seed,
            coarse=self.parameters.is_coarse,
            query_rows=self._query_rows,
            or_else=", or go on without with strict=False",
            see_coverage=self._see_coverage,
        )

    def cover_unfrozen(self) -> None:
        """Cover parameters that were unfrozen, or given to an optimizer, since training began."""
        unfrozen = self.parameters.add_unfrozen()
        if not unfrozen:
            return
        self.rows.unreadable.capture = self.listening.training
        self._see_coverage()
        known = {name for names in self.unfrozen.values() for name in names}
        if not known.issuperset(unfrozen):  # a resumed run knows them already, and their queries' gradients
            self.unfrozen[self.step] = unfrozen
            self.refreshed_at = None

    def _see_coverage(self) -> None:
        """Other parameters are covered from here on."""
        self.parameters.see_coverage()
        if self.query_check is not None:
            self.query_check.parameters = dict(self.parameters.covered.by_name)
        self.scoring.see(self.parameters.covered.by_name)
        if self.ledger is not None:
            self.ledger.see(self.parameters.all(), frozenset(self.parameters.covered.by_name))

    # Passes

    @property
    def step(self) -> int:
        """The optimizer step that is next, counted over all optimizers."""
        return self.first_step + self.taken

    @property
    def _is_due(self) -> bool:
        """Whether it is time for a refresh."""
        return self.refreshed_at is None or self.step - self.refreshed_at >= self.refresh_every_n_steps

    def refresh(self) -> None:
        """The queries' gradients at the weights of now; the interval before is closed."""
        divided_before = self._divide_by_second_moments()
        whole = self.scoring.keeps_queries_whole
        compare = None
        if self.query_check is not None and self._last is None:
            check = self.query_check

            def compare(losses: Tensor, gradients: PerExampleGradients, query_ids: Tensor) -> None:
                check.compare(losses, gradients, query_ids, whole=whole)

        try:
            found = self._run_queries(compare, whole=whole)
        except NotFiniteError as error:
            if self._last is None:
                raise
            if self.scoring.whitened is not None:
                self.scoring.whitened.precondition_with(divided_before)
            self._go_on_with_old_queries(error)
            return
        closing = None if self.ledger is None else self.ledger.close(found)
        stale = self.staleness.before_refresh(self.scoring.queries, len(self.refreshes))
        self.scoring.refresh(found.gradients, found.losses, found.learned, keep_last=stale)
        if closing is not None:
            assert self.ledger is not None
            gained, by_given = self.scoring.take_gains()
            given = by_given if self.rules.projection is not None and not self.ledger.projects_all else None
            log_interval(self.trainer, closing.finish(gained, given), self.step, len(self.refreshes))
        if self.ledger is not None:
            self.ledger.open(found, self.parameters.all())
        for check in self.parameters.conservation.values():
            assert self.scoring.queries is not None
            check.set_queries(self.scoring.queries, len(self.refreshes))
        self._last = found
        self.refreshed_at = self.step
        self.refreshes.append(self.step)
        self.has_queries_to_add = False

    def _run_queries(self, compare: Compare | None, *, whole: bool) -> Refresh:
        """Differentiate the queries, until all parameters that can't be read off their layers are known."""
        while True:
            gaps = {} if self.ledger is None else self.parameters.gaps()
            try:
                with self.parameters.all_require_gradients(), self._kept.in_place():
                    return self.queries.run(
                        self.trainer, self.pl_module, self.listening.queries, self.step, gaps, compare, whole=whole
                    )
            except UnreadableError as error:
                if self.rows.yield_to_queries(error, self.listening.queries):
                    self._see_coverage()

    def _query_rows(self) -> LayoutBook | None:
        """Whose rows are whose in the queries' passes; None if some can't be told apart."""
        try:
            self._run_queries(None, whole=self.scoring.keeps_queries_whole)
        except ValueError:
            return None
        return self.listening.queries.book

    def _divide_by_second_moments(self) -> dict[str, Preconditioner]:
        """Whitened scores see gradients as the optimizer's second moments of now make them.

        Returns:
            What they were multiplied with before.
        """
        whitened = self.scoring.whitened
        if whitened is None or not whitened.divides:
            return {}
        before, elementwise = whitened.preconditioners, whitened.rules.preconditioner == "elementwise"
        whitened.precondition_with(self.parameters.preconditioners(elementwise=elementwise))
        return before

    def _go_on_with_old_queries(self, error: NotFiniteError) -> None:
        """Training has diverged: that is the user's to see, and no reason to lose the scores so far."""
        if not self.refreshes_failed:
            rank_zero_warn(f"OnlineTracIn: at step {self.step} the queries could not be differentiated anew. {error}")
        self.refreshes_failed.append(self.step)
        self.refreshed_at = self.step

    def begin_batch(self, batch: Any, batch_idx: int, example_ids: Tensor, sizes: Sequence[int]) -> None:
        """A batch of examples is about to be run.

        Args:
            batch: The batch.
            batch_idx: Its index.
            example_ids: ``[B]``.
            sizes: Of the batches of several dataloaders that it is made of.
        """
        whole = self.scoring.keeps_examples_whole
        self.rows.before_batch(batch, batch_idx, len(example_ids), sizes, self.step, whole=whole)
        if self._is_due or self.has_queries_to_add:
            self.refresh()
        self._batch_ids, self._batch_sizes = example_ids, sizes
        self._recordings = [self._start_recording()]

    def _start_recording(self) -> Recording:
        whole = self.scoring.keeps_examples_whole
        recording = self.listening.training.start(
            len(self._batch_ids), unprojected=whole, loaders=self._batch_sizes, book=self.rows.book
        )
        self.rows.watch(recording)
        return recording

    def before_backward(self, loss: Tensor) -> None:
        """A backward pass is about to begin."""
        if not self._recordings:
            return
        self.rows.before_backward(self._recordings[-1], loss, self.step)
        if not self.pl_module.automatic_optimization:
            if self._is_due:  # weights may have moved since the batch began
                self.refresh()
            for one in self.parameters.followed:
                if one.window and not one.has_gradients():  # they have been set to zero since
                    self._discard(one)

    def after_backward(self) -> None:
        """A backward pass has ended: read what it has added to the gradients."""
        if not self._recordings:
            return
        manual = not self.pl_module.automatic_optimization
        self.listening.training.stop()
        scale = loss_scale(self.trainer)
        factor = 1 / (scale * num_processes())
        self.rows.after_backward(self._recordings, self.step)
        for recording in self._recordings:
            if len(self._recordings) > 1 and not recording.has_gradients():
                continue
            gradients = self.rows.read(recording)
            before_projection = None
            if self.scoring.keeps_examples_whole:
                assert self.rules.projection is not None
                before_projection, gradients = gradients, project(gradients, self.rules.projection)
            self.parameters.covered.heard(gradients.parts)
            if self._heard is not None:
                self._heard.update(gradients.parts)
            for one in self.parameters.followed:
                self._contribute(one, gradients, factor, before_projection)
            self.staleness.after_backward(gradients, self.scoring)
            if manual:
                recording.forget_gradients()
        if manual:
            for one in self.parameters.followed:
                one.norm_of_backward = one.gradient_norm() / scale
            self._recordings.append(self._start_recording())
        else:
            self._let_go()

    def _let_go(self) -> None:
        """Of what was recorded, and so of the activations."""
        for recording in self._recordings:
            recording.close()
        self._recordings = []

    def _contribute(
        self,
        one: FollowedOptimizer,
        gradients: PerExampleGradients,
        factor: float,
        before_projection: PerExampleGradients | None,
    ) -> None:
        shares = {s: [n for n in names if n in gradients.parts] for s, names in one.shares().items()}
        shares = {share: names for share, names in shares.items() if names}
        if not shares:
            return
        if one.index in self.parameters.conservation:
            self.parameters.conservation[one.index].add_to_window(gradients, factor)
        follows = "update" in self.rules.kinds
        contribution = self.scoring.multiply(
            self._batch_ids,
            gradients,
            shares,
            factor,
            elementwise=follows and one.is_elementwise,
            whole=before_projection,
        )
        contribution.refresh = len(self.refreshes) - 1
        one.window.append(contribution)
        one.is_open = True

    def end_batch(self) -> None:
        """A batch is done: steps that were begun and not taken have been skipped."""
        self.listening.training.stop()
        self._let_go()
        heard, self._heard = self._heard, None
        if heard and self._last is not None:
            require_shared_parameters(heard, self._last.gradients.parts.keys(), strict=self.strict)
        for one in self.parameters.followed:
            if one.is_stepping:
                one.is_stepping = False
                self.steps_skipped.append(self.step - 1)
                self._discard(one)

    # Steps

    def begin_window(self) -> None:
        """Gradients are about to be set to zero under automatic optimization."""
        for one in self.parameters.followed:
            self._discard(one)

    def _discard(self, one: FollowedOptimizer) -> None:
        one.window, one.is_open = [], False
        if one.index in self.parameters.conservation:
            self.parameters.conservation[one.index].discard_window()

    def begin_step(self, one: FollowedOptimizer) -> None:
        """An optimizer is about to step."""
        if one.is_stepping:  # announced by Lightning already, before a loss scaler's decision
            return
        self.parameters.refuse_unknown(one)
        self.parameters.covered.require_hearing()
        self.rows.before_step(self.parameters.covered.by_name)
        manual = not self.pl_module.automatic_optimization
        check = self.parameters.conservation.get(one.index)
        wants_norm = (check is not None and check.wants_norm) or self.rules.exact_momentum
        norm = self.clipping.before_step(one, wants_norm=wants_norm)
        one.norm_before_step = norm
        one.note_before_step(steps="update" in self.rules.kinds and one.problem is None)
        if self.ledger is not None:
            self.ledger.before_step(one)
        self.taken += 1
        if check is not None and (one.window or num_processes() > 1) and self._is_finite(one):
            check.check_window(
                one.window,
                self.clipping.factor,
                norm,
                self.step - 1,
                is_clipped=manual,
                look_after=self.clipping.is_measured,
            )

    def end_step(self, one: FollowedOptimizer) -> None:
        """An optimizer has stepped."""
        if not one.is_stepping:  # not one that was announced, such as in a closure of somebody's own
            return
        one.is_stepping = one.is_open = False
        one.steps_taken += 1
        window = list(one.window)  # by hand, later backward passes may add to it
        if self.pl_module.automatic_optimization:
            one.window = []
        self.clipping.after_step(one)
        clip = self.clipping.factor
        given = one.gradients_given(clip if self.pl_module.automatic_optimization else 1.0)
        steps = one.steps(given) if "update" in self.rules.kinds and one.problem is None else {}
        projection = self.rules.projection
        step = StepTaken(
            self.step - 1,
            one.index,
            one.rates,
            clip,
            steps,
            window,
            self.scoring.moment(self.trainer.current_epoch),
            tuple(name for _, name, _ in one.parameters(covered=True)),
            given=one.as_contribution(given, projection, clip) if steps and projection is not None else None,
        )
        if not self._is_finite(one) or not self.scoring.take(step):
            self._leave_out()
        if self.pl_module.automatic_optimization:  # by hand, another step may use the same gradients
            for contribution in window:
                contribution.projected, contribution.whitened = {}, {}
        if self.ledger is not None:
            self.ledger.after_step(one, steps, given)
        check = self.parameters.conservation.get(one.index)
        if check is not None and check.expects_gradient and keeps_gradients(one.optimizer):
            self._check_after(check, one)

    def _check_after(self, check: Conservation, one: FollowedOptimizer) -> None:
        norm = one.gradient_norm()
        if not (zeroes_gradients_itself(self.pl_module) and norm == 0):
            check.check_gradient(norm, self.step - 1, self.clipping.factor if self.clipping.is_measured else 1.0)

    def _is_finite(self, one: FollowedOptimizer) -> bool:
        return one.norm_before_step is None or math.isfinite(one.norm_before_step)

    def _leave_out(self) -> None:
        """A step whose contributions are no numbers would spoil all its examples' scores."""
        if not self.steps_left_out:
            rank_zero_warn(
                f"OnlineTracIn: the contributions of step {self.step - 1} are not finite: the loss or a gradient is "
                "NaN or infinite. Its scores are left out, and so will be those of other such steps; the manifest "
                "counts them"
            )
        self.steps_left_out.append(self.step - 1)

    # Its end

    def finish(self) -> None:
        """Training has ended: close what is open."""
        if self.taken and self.refreshed_at != self.step and (self.ledger is not None or self.scoring.pending):
            self.refresh()
        self.scoring.finish()
