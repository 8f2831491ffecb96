"""One training run that is traced: from batches, backward passes and optimizer steps to scores, ledger and checks.

The training loop reports events; the traced run decides what each of them means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ftrace.gradients import PerExampleGradients, Recording, UnreadableError
from ftrace.online.adapters import adapters_in_use
from ftrace.online.batches import batch_ids, batch_sizes
from ftrace.online.checks.failures import Failures
from ftrace.online.checks.query_check import QueryCheck
from ftrace.online.hooks import Hooks
from ftrace.online.ledger import LedgerKeeper
from ftrace.online.loop import TrainingLoop
from ftrace.online.optimizers.followed_optimizer import FollowedOptimizer
from ftrace.online.optimizers.trained_parameters import TrainedParameters
from ftrace.online.precision import eps_of_passes
from ftrace.online.processes import num_processes
from ftrace.online.queries.answers import AnswerKeeper
from ftrace.online.queries.query_pass import QueryPass, require_shared_parameters
from ftrace.online.refresh_schedule import RefreshSchedule, typical_interval
from ftrace.online.refresher import QueryRefresher
from ftrace.online.rehearsal.row_finder import RowFinder
from ftrace.online.repeated_ids import RepeatedIds
from ftrace.online.scoring.accumulator import ScoreAccumulator
from ftrace.online.scoring.early_products import EarlyProducts
from ftrace.online.scoring.forms import Forms
from ftrace.online.scoring.row_blocks import MakeZeros, zeros_in_memory
from ftrace.online.scoring.scoring import Scoring
from ftrace.online.settings import TraceSettings
from ftrace.online.steps import OptimizerSteps
from ftrace.online.texts.descriptions import Descriptions


class TracedRun:
    """A traced run, from its first batch to its last step.

    Args:
        settings: What is traced, and how.
        hooks: The hooks on the module, attached already.
        who: Whose messages these are.
        describe: Says the texts of examples and queries, as in :class:`Descriptions`.
        make_zeros: Makes the memory of a block of scores.

    Attributes:
        descriptions: The texts of examples and queries.
        example_names: By id that was made from a name, this name.
        unfrozen: By step, the names of parameters that are covered only from this step on.
        parameters: The trained parameters and their optimizers.
        sums: The scores so far.
        scoring: Computes scores.
        ledger: The ledger; None without one.
        answers: When queries were right.
        steps: The steps of the optimizers.
        refresher: Refreshes the query gradients.
        rows: Finds out whose rows are whose.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        queries: QueryPass,
        settings: TraceSettings,
        hooks: Hooks,
        who: str,
        describe: Any = None,
        make_zeros: MakeZeros = zeros_in_memory,
    ) -> None:
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
        self.descriptions = Descriptions(
            describe, loop, who, settings.id_key, settings.query_id_key, settings.candidates
        )
        self.unfrozen: dict[int, list[str]] = {}
        self._adapters = adapters_in_use(loop.module)
        self._repeated_ids = RepeatedIds(loop, settings.id_key, strict=settings.strict, shared=settings.shared_ids)
        self._with_gradient: set[str] | None = set()  # parameters with a gradient in the first batch; None after it
        self._recordings: list[Recording] = []
        self._early: EarlyProducts | None = None
        self._batch_ids = torch.empty(0)
        self._batch_sizes: Sequence[int] = ()
        self.parameters = TrainedParameters(
            loop, hooks, rules, self.failures, strict=settings.strict, seed=settings.seed
        )
        covered = self.parameters.covered.by_name
        dtypes = {p.dtype for p in covered.values()}
        dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        self.sums = ScoreAccumulator(rules.kinds, queries.ids.tolist(), dtype, settings.candidates, make_zeros)
        batches = typical_interval(settings.refresh_every) * loop.batches_per_step
        divides = any(optimizer.is_elementwise for optimizer in self.parameters.followed)
        self.answers = AnswerKeeper()
        self.scoring = Scoring(rules, self.sums, list(covered), batches, self.answers, divides=divides)
        self.ledger: LedgerKeeper | None = None
        if settings.ledger:
            self.ledger = LedgerKeeper(
                frozenset(covered),
                trapezoid=rules.trapezoid,
                accounts="update" in rules.kinds,
                exact_momentum=rules.exact_momentum,
                projection=rules.projection,
                projects_all=rules.projection is not None
                and (not self.scoring.needs_queries_unprojected or self.scoring.reduces_queries),
            )
        self.steps = OptimizerSteps(loop, self.parameters, self.scoring, self.ledger, who)
        is_sharded = any(hasattr(p, "full_tensor") for p in covered.values())
        self.query_check = None if is_sharded else self.parameters.make_check(QueryCheck, covered)
        self.refresher = QueryRefresher(
            loop,
            queries,
            hooks,
            self.parameters,
            self.scoring,
            self.ledger,
            self.answers,
            self.query_check,
            schedule=RefreshSchedule(
                settings.refresh_every,
                settings.refresh_share,
                loop.train_loaders.batches / loop.batches_per_step * len(loop.optimizers),
                loop.batches_per_step / len(loop.optimizers),
            ),
            staleness_every=settings.staleness_every,
            work_around=self._work_around_for_queries,
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
            eps=eps_of_passes(loop),
            query_rows=lambda: self.refresher.rows(self.step),
            or_else=", or go on without with strict=False",
            update_coverage=self._update_coverage,
        )

    # What is covered

    def _cover_unfrozen(self) -> None:
        """Cover parameters that were unfrozen, or given to an optimizer, since training began."""
        unfrozen = self.parameters.add_unfrozen()
        if not unfrozen:
            return
        self._adopt_new_hooks()
        known = {name for names in self.unfrozen.values() for name in names}
        if not known.issuperset(unfrozen):  # a resumed run knows them already, and their queries' gradients
            self.unfrozen[self.step] = unfrozen
            self.refresher.last_at = None

    def _adopt_new_hooks(self) -> None:
        self.rows.unreadable.capture = self.hooks.training
        self._update_coverage()

    def _notice_adapters(self) -> None:
        """Have queries differentiated anew if adapters were switched, since their gradients are of another model.

        Raises:
            ValueError: If they were switched between a backward pass and its step.
        """
        in_use = adapters_in_use(self.loop.module)
        if in_use == self._adapters:
            return
        if any(optimizer.is_open for optimizer in self.parameters.followed):
            raise ValueError(
                f"{self.who}: adapters were switched between a backward pass and its optimizer step, so that one step "
                "has gradients of two models. Switch between steps"
            )
        self._adapters = in_use
        self.refresher.last_at = None

    def _update_coverage(self) -> None:
        """Tell all parts of the run which parameters are now covered."""
        self.parameters.update_coverage()
        if self.query_check is not None:
            self.query_check.parameters = dict(self.parameters.covered.by_name)
        self.scoring.cover(self.parameters.covered.by_name)
        if self.ledger is not None:
            self.ledger.update_parameters(self.parameters.all(), frozenset(self.parameters.covered.by_name))

    def _work_around_for_queries(self, error: UnreadableError) -> None:
        if self.rows.work_around_for_queries(error, self.hooks.queries):
            self._update_coverage()

    # Passes

    @property
    def step(self) -> int:
        """The index of the next optimizer step, counted over all optimizers."""
        return self.steps.next

    def begin_batch(self, batch: Any, batch_idx: int, added_queries: list[Any]) -> None:
        """Prepare for a batch of examples.

        Args:
            batch_idx: Its index.
            added_queries: Sources of queries that were added; removed from the list as soon as they are traced.
        """
        key = self.settings.id_key
        example_ids, sizes = batch_ids(batch, key, "id_key", self.example_names), batch_sizes(batch, key)
        self._repeated_ids.check(example_ids, self.example_names)
        self.descriptions.add_examples(batch, self.example_names)
        self._cover_unfrozen()
        self._notice_adapters()
        while added_queries and not any(optimizer.is_open for optimizer in self.parameters.followed):
            self.sums.add_queries(self.refresher.add(added_queries.pop(0), self.step))
            self.descriptions.add_queries(self.queries)
        unprojected = self.scoring.keeps_examples_unprojected
        self.rows.before_batch(batch, batch_idx, len(example_ids), sizes, self.step, unprojected=unprojected)
        if self.refresher.is_due(self.step) or self.refresher.has_new_queries:
            self.refresher.refresh(self.step, len(example_ids))
        self._batch_ids, self._batch_sizes = example_ids, sizes
        self._recordings = [self._start_recording()]

    def _start_recording(self) -> Recording:
        begins = {optimizer.index: optimizer.begins_gradient for optimizer in self.parameters.followed}
        may_change = self.loop.is_manual and (self.loop.repeats_backward or self.refresher.comes_late)
        projections = self.scoring.example_projections(begins, may_change=may_change)
        recording = self.hooks.training.start(
            len(self._batch_ids),
            unprojected=not projections,
            projections=projections,
            loaders=self._batch_sizes,
            book=self.rows.book,
            documents=self.rows.trials.documents,
        )
        self.rows.watch(recording)
        return recording

    def before_backward(self, loss: Tensor) -> None:
        """Prepare for a backward pass."""
        self._early = None
        if not self._recordings:
            return
        recording = self._recordings[-1]
        rows_are_known = self.rows.before_backward(recording, loss, self.step)
        if self.loop.is_manual:
            if self.refresher.is_due(self.step):  # there have been steps since the batch began
                keeps_moments = self.scoring.is_prepared(recording.projections)
                self.refresher.refresh(self.step, len(self._batch_ids), keeps_moments=keeps_moments)
            self._discard_zeroed()
        if rows_are_known and not self.loop.repeats_backward and not self.refresher.staleness.is_due:
            self._multiply_early(recording)

    def _discard_zeroed(self) -> None:
        """Forget contributions to gradients that were set to zero, also those of a pass that has failed."""
        for optimizer in self.parameters.followed:
            remains = bool(optimizer.contributions) and optimizer.has_gradients()
            if optimizer.contributions and not optimizer.is_open:
                optimizer.adds_to_used = remains
            if not remains:
                self.steps.discard(optimizer)

    def _multiply_early(self, recording: Recording) -> None:
        """Have gradients multiplied inside of the backward pass, if nothing else is done with them."""
        followed = self.parameters.followed
        elementwise = "update" in self.rules.kinds and any(optimizer.is_elementwise for optimizer in followed)
        shares = {optimizer.index: optimizer.shares() for optimizer in followed}
        self._early = self.scoring.early_products(shares, elementwise=elementwise, also=self._add_to_first_totals)
        if self._early is not None:
            recording.read_early(self._early.take)

    def _add_to_first_totals(self, gradients: PerExampleGradients) -> None:
        for check in self.parameters.conservation.values():
            if check.adds_up:  # later on, a loss scaler must not be asked for each layer
                check.add_contributions(gradients, self._factor)

    @property
    def _factor(self) -> float:
        """What turns gradients of the current loss into contributions to the gradient that the optimizer gets."""
        return 1 / (self.loop.loss_scale * num_processes())

    def after_backward(self) -> None:
        """Read the contributions that a backward pass has added to the gradients."""
        if not self._recordings:
            return
        manual = self.loop.is_manual
        self.hooks.training.stop()
        factor, early = self._factor, self._early
        self._early = None
        self.rows.after_backward(self._recordings, self.step)
        for recording in self._recordings:
            if len(self._recordings) > 1 and not recording.has_gradients():
                continue
            self._take(self.scoring.forms(self.rows.read(recording), recording.projections, early), factor)
            if manual:
                recording.forget_gradients()
        if manual:
            for optimizer in self.parameters.followed:
                optimizer.norm_of_backward = optimizer.gradient_norm() / self.loop.loss_scale
            self._recordings.append(self._start_recording())
        else:
            self._close_recordings()

    def _close_recordings(self) -> None:
        """Release what was recorded, and with it the activations."""
        for recording in self._recordings:
            recording.close()
        self._recordings = []

    def _take(self, forms: Forms, factor: float) -> None:
        self.parameters.covered.note_recorded(forms.names)
        if self._with_gradient is not None:
            self._with_gradient.update(forms.names)
        for optimizer in self.parameters.followed:
            self._contribute(optimizer, forms, factor)
        if forms.early is None:
            self.refresher.staleness.after_backward(forms.plain, self.scoring.queries)

    def _contribute(self, optimizer: FollowedOptimizer, forms: Forms, factor: float) -> None:
        gradients, present = forms.plain, forms.names
        shares = {share: [n for n in names if n in present] for share, names in optimizer.shares().items()}
        shares = {share: names for share, names in shares.items() if names}
        if not shares:
            return
        if optimizer.index in self.parameters.conservation:
            self.parameters.conservation[optimizer.index].add_contributions(gradients, factor)
        contribution = self.scoring.multiply(
            self._batch_ids,
            forms,
            shares,
            factor,
            elementwise="update" in self.rules.kinds and optimizer.is_elementwise,
            optimizer=optimizer.index,
            begins=not optimizer.contributions,
        )
        contribution.refresh = len(self.refresher.steps) - 1
        optimizer.contributions.append(contribution)
        optimizer.is_open = True

    def end_batch(self) -> None:
        """Close a batch: steps that were begun but not taken have been skipped."""
        self.hooks.training.stop()
        self._close_recordings()
        trained, self._with_gradient = self._with_gradient, None
        if trained and self.refresher.last is not None:
            queried = self.refresher.last.gradients.parts.keys()
            require_shared_parameters(trained, queried, self.who, strict=self.settings.strict)
        self.steps.skip_begun()

    # Steps

    def discard_contributions(self) -> None:
        """Forget contributions that no step has used: automatic optimization sets gradients to zero."""
        self.steps.discard_all()

    def begin_step(self, optimizer: FollowedOptimizer) -> None:
        """Check and remember the gradients with which an optimizer is about to step."""
        if not optimizer.is_stepping:  # otherwise the loop has announced it already, before a loss scaler's decision
            self.steps.begin(optimizer)
            self.rows.before_step(self.parameters.covered.by_name)

    def end_step(self, optimizer: FollowedOptimizer) -> None:
        """Book a step that was taken."""
        if optimizer.is_stepping:  # a step inside of a user's own closure was not announced
            self.steps.end(optimizer)

    # Its end

    def finish(self) -> None:
        """Book the last steps, since training has ended."""
        if (
            self.steps.begun
            and self.refresher.last_at != self.step
            and (self.ledger is not None or self.scoring.pending)
        ):
            self.refresher.refresh(self.step, len(self._batch_ids))
        elif self.steps.begun and self.refresher.last_at != self.step:
            self.refresher.ask(self.step)
        self.scoring.finish()

    # State

    def state(self) -> dict[str, Any]:
        """Return all state except the sums, which are as large as the scores."""
        return {
            "names": dict(self.example_names),
            "unfrozen": dict(self.unfrozen),
            "adapters": self._adapters,
            "ledger": None if self.ledger is None else self.ledger.state(),
            **self.steps.state(),
            **self.refresher.state(),
            **self.scoring.state(),
        }

    def load(self, states: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned.

        Args:
            states: The states of the processes that this one takes over, with their sums.
            shared: The state of any process.
        """
        self.unfrozen = shared["unfrozen"]
        if self.parameters.cover_again(shared.get("trained", ())):  # earlier versions didn't note them
            self._adopt_new_hooks()
        self._adapters = shared.get("adapters", self._adapters)  # earlier versions didn't follow them
        self.steps.load(shared)
        last = shared["last"]
        self.scoring.load(states, shared, last.gradients, last.losses, last.lengths)
        self.refresher.load(shared)
        for state in states:
            self.example_names |= state["names"]
            self.sums.add_state(state["sums"])
        if self.ledger is not None and shared["ledger"] is not None:
            assert self.refresher.last is not None
            self.ledger.load(shared["ledger"], self.refresher.last, self.parameters.all())
