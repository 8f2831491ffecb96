"""Refreshes, which recompute the queries' gradients at the current weights, and the intervals between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ftrace.gradients import LayoutBook, PerExampleGradients, Preconditioner, UnreadableError
from ftrace.online.checks.query_check import QueryCheck
from ftrace.online.hooks import Hooks
from ftrace.online.ledger import LedgerKeeper, log_interval
from ftrace.online.loop import TrainingLoop
from ftrace.online.messages import warn
from ftrace.online.optimizers.trained_parameters import TrainedParameters
from ftrace.online.precision import eps_of_passes
from ftrace.online.queries.answers import AnswerKeeper
from ftrace.online.queries.probabilities import ProbabilityCheck
from ftrace.online.queries.query_pass import Compare, NotFiniteError, QueryPass, Refresh
from ftrace.online.refresh_schedule import RefreshSchedule
from ftrace.online.scoring.scoring import Scoring
from ftrace.online.scoring.staleness import Staleness
from ftrace.online.undisturbed.kept_state import KeptState


class QueryRefresher:
    """The refreshes of one run.

    Args:
        hooks: The run's hooks.
        scoring: Uses the query gradients.
        ledger: Books the intervals; None without a ledger.
        answers: Keeps when queries were right.
        query_check: Checks the first batch of queries; None if they aren't checked.
        schedule: The steps before which queries are differentiated anew.
        staleness_every: The number of refreshes from one measurement of staleness to the next; 0: never.
        work_around: Called if gradients of queries can't be read, to change how parameters are read or leave them out.
        who: Whose messages these are.

    Attributes:
        steps: The steps before which there was a refresh.
        failed: The steps before which the queries' losses were not finite.
        last: The last refresh; None before the first one.
        last_at: The step of the last attempt; None if a refresh is due at any step.
        has_new_queries: Whether queries were added since the last refresh.
        comes_late: Whether a refresh came between a forward and its backward pass, since the loop had taken a step
            there, when gradients were to be projected with the second moments of the last refresh. Later ones aren't.
        first_steps: By query that was added during training, the first step for which it is traced.
        probabilities: Checks that losses can be -log of probabilities, if scores of the kind ``learning`` need that;
            otherwise None.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        queries: QueryPass,
        hooks: Hooks,
        parameters: TrainedParameters,
        scoring: Scoring,
        ledger: LedgerKeeper | None,
        answers: AnswerKeeper,
        query_check: QueryCheck | None,
        *,
        schedule: RefreshSchedule,
        staleness_every: int,
        work_around: Callable[[UnreadableError], None],
        who: str,
    ) -> None:
        self.loop = loop
        self.queries = queries
        self.hooks = hooks
        self.parameters = parameters
        self.scoring = scoring
        self.ledger = ledger
        self.answers = answers
        self.query_check = query_check
        self.schedule = schedule
        self.staleness = Staleness(staleness_every)
        self.who = who
        self.steps: list[int] = []
        self.failed: list[int] = []
        self.last: Refresh | None = None
        self.last_at: int | None = None
        self.has_new_queries = self.comes_late = False
        self.first_steps: dict[int, int] = {}
        self.probabilities = ProbabilityCheck(who) if "learning" in scoring.rules.kinds else None
        self._work_around = work_around
        self._kept = KeptState(loop.module, left_alone=loop.left_alone)

    def is_due(self, step: int) -> bool:
        """Whether a refresh is due before this optimizer step."""
        return self.last_at is None or step - self.last_at >= self.schedule.interval

    def add(self, source: Any, step: int) -> list[int]:
        """Add queries, which are traced from this step on.

        Returns:
            The ids of those that are new.
        """
        new: list[int] = self.queries.add(source).tolist()
        self.first_steps |= dict.fromkeys(new, step)
        self.has_new_queries = self.has_new_queries or bool(new)
        return new

    def refresh(self, step: int, rows: int, *, keeps_moments: bool = False) -> None:
        """Compute the queries' gradients at the current weights, and close the interval that ends here.

        Args:
            step: The next optimizer step.
            rows: The number of rows of the current batch.
            keeps_moments: Whether whitening goes on with the second moments of the last refresh, with which the
                current batch is recorded already.

        Raises:
            ValueError: At the first refresh, if the losses are not one finite number per query, or below 0 although
                scores of the kind ``learning`` take them for -log of probabilities.
        """
        self.comes_late = self.comes_late or keeps_moments
        previous_preconditioners = None if keeps_moments else self._divide_by_second_moments()
        unprojected = self.scoring.needs_queries_unprojected
        compare = None
        if self.query_check is not None and self.last is None:
            check = self.query_check

            def compare(losses: Tensor, gradients: PerExampleGradients, query_ids: Tensor) -> None:
                check.compare(losses, gradients, query_ids, unprojected=unprojected)

        try:
            current, divided = self._run_queries(step, compare)
        except NotFiniteError as error:
            if self.last is None:
                raise
            if previous_preconditioners is not None:
                assert self.scoring.whitened is not None
                self.scoring.whitened.precondition_with(previous_preconditioners)
            self._keep_old_queries(step, error)
            self.schedule.failed(step, rows, step - self.steps[0])
            return
        if self.probabilities is not None:
            eps, is_first = eps_of_passes(self.loop), self.last is None
            self.probabilities.check(current.losses, self.queries.ids, step, eps=eps, is_first=is_first)
        closing = None if self.ledger is None else self.ledger.close(current)
        is_kept = self.staleness.before_refresh(self.scoring.queries, len(self.steps))
        self.scoring.refresh(current.gradients, current.losses, current.lengths, divided=divided, keep_last=is_kept)
        self.answers.add(step, current.learned)
        if closing is not None:
            assert self.ledger is not None
            gained, gained_by_given = self.scoring.gains.take()
            is_compared = self.scoring.rules.projection is not None and not self.ledger.projects_all
            row = closing.finish(gained, gained_by_given if is_compared else None)
            log_interval(self.loop, row, step, len(self.steps))
        if self.ledger is not None:
            self.ledger.open(current, self.parameters.all())
        self._set_queries_of_checks(len(self.steps))
        self.last = current
        self.last_at = step
        self.steps.append(step)
        self.schedule.refreshed(step, current.losses, rows, step - self.steps[0])
        self.has_new_queries = False

    def ask(self, step: int) -> None:
        """Ask the queries without differentiating them, so that it is known who is right once training has ended."""
        with self._kept.in_place():
            self.answers.add(step, self.queries.ask(self.hooks.queries))

    def _set_queries_of_checks(self, refresh: int) -> None:
        for check in self.parameters.conservation.values():
            assert self.scoring.queries is not None
            check.set_queries(self.scoring.queries, refresh)

    def _run_queries(self, step: int, compare: Compare | None) -> tuple[Refresh, PerExampleGradients | None]:
        """Differentiate the queries, repeatedly if parameters turn out not to be readable off their own layers.

        Returns:
            Losses and gradients, and if :attr:`Scoring.reduces_queries`, the gradients divided for whitening.
        """
        unprojected = self.scoring.needs_queries_unprojected
        while True:
            reduction = self.scoring.query_reduction()
            gaps = {} if self.ledger is None else self.parameters.gaps()
            try:
                with self.parameters.all_require_gradients(), self._kept.in_place():
                    refresh = self.queries.run(
                        self.hooks.queries, step, gaps, compare, unprojected=unprojected, reduce=reduction
                    )
                return refresh, None if reduction is None else reduction.divided
            except UnreadableError as error:
                self._work_around(error)

    def rows(self, step: int) -> LayoutBook | None:
        """Find out whose rows are whose in the queries' passes; None if that fails."""
        try:
            self._run_queries(step, None)
        except ValueError:
            return None
        return self.hooks.queries.book

    def _divide_by_second_moments(self) -> dict[str, Preconditioner] | None:
        """Let whitened scores divide gradients by the root of the optimizer's current second moments.

        Returns:
            The previous preconditioners; None if they don't change.
        """
        whitened = self.scoring.whitened
        if whitened is None or not whitened.divides:
            return None
        previous, elementwise = whitened.preconditioners, whitened.rules.preconditioner == "elementwise"
        whitened.precondition_with(self.parameters.preconditioners(elementwise=elementwise))
        return previous

    def _keep_old_queries(self, step: int, error: NotFiniteError) -> None:
        """Continue with the previous query gradients, so that a diverging run keeps the scores so far."""
        if not self.failed:
            warn(f"{self.who}: at step {step} the queries could not be differentiated anew. {error}")
        self.failed.append(step)
        self.last_at = step

    def state(self) -> dict[str, Any]:
        """Return the steps of all refreshes, the last refresh, and the measured staleness."""
        return {
            "refreshed_at": self.last_at,
            "refreshes": list(self.steps),
            "comes_late": self.comes_late,
            "query_first_steps": dict(self.first_steps),
            "answers": self.answers.state(),
            "last": self.last,
            "schedule": self.schedule.state(),
            "negative_losses": [] if self.probabilities is None else sorted(self.probabilities.negative),
            **self.staleness.state(),
        }

    def load(self, shared: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned; :meth:`Scoring.load` must come before."""
        self.last_at, self.steps = shared["refreshed_at"], shared["refreshes"]
        self.comes_late = shared.get("comes_late", False)  # earlier versions recorded such loops unprojected
        self.first_steps, last = shared["query_first_steps"], shared["last"]
        gradients = self.scoring.directions.unprojected  # earlier versions' files may have them in another form
        self.last = None if last is None or gradients is None else replace(last, gradients=gradients)
        self.staleness.load(shared)
        if self.probabilities is not None:
            self.probabilities.negative = set(shared.get("negative_losses", ()))  # earlier versions didn't look
        if "schedule" in shared:  # earlier versions had a fixed interval
            self.schedule.load(shared["schedule"])
        if "answers" in shared:
            self.answers.load(shared["answers"])
        else:
            self.answers.load_earlier(shared)
        self._set_queries_of_checks(len(self.steps) - 1)
