"""Refreshes: the queries' gradients anew at the current weights, and the intervals between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ftrace.gradients import LayoutBook, PerExampleGradients, Preconditioner, UnreadableError
from ftrace.online.checks.query_check import QueryCheck
from ftrace.online.hooks import Hooks
from ftrace.online.ledger import LedgerKeeper, log_interval
from ftrace.online.loop import TrainingLoop
from ftrace.online.messages import warn
from ftrace.online.optimizers.trained_parameters import TrainedParameters
from ftrace.online.queries.query_pass import Compare, NotFiniteError, QueryPass, Refresh
from ftrace.online.restore.kept_state import KeptState
from ftrace.online.scoring.scoring import Scoring
from ftrace.online.scoring.staleness import Staleness


class QueryRefresher:
    """The refreshes of one run.

    Args:
        loop: The training loop.
        queries: Runs the queries.
        hooks: The run's hooks.
        parameters: The trained parameters.
        scoring: Takes the query gradients.
        ledger: Books the intervals; None without a ledger.
        query_check: Checks the first batch of queries; None if they aren't checked.
        every: Optimizer steps from one refresh to the next.
        staleness_every: Measure staleness at every so many refreshes; 0: never.
        yield_to: Is called with what queries show to be unreadable, and changes what is read.
        who: Whose messages these are.

    Attributes:
        steps: Steps before which there was a refresh.
        failed: Steps before which the queries' losses were not finite.
        last: The last refresh; None before the first.
        last_at: The step of the last attempt; None if a refresh is due whatever the step.
        has_new_queries: Whether queries were added since.
        first_steps: By query that was added later, the step from which on it is traced.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        queries: QueryPass,
        hooks: Hooks,
        parameters: TrainedParameters,
        scoring: Scoring,
        ledger: LedgerKeeper | None,
        query_check: QueryCheck | None,
        *,
        every: int,
        staleness_every: int,
        yield_to: Callable[[UnreadableError], None],
        who: str,
    ) -> None:
        self.loop = loop
        self.queries = queries
        self.hooks = hooks
        self.parameters = parameters
        self.scoring = scoring
        self.ledger = ledger
        self.query_check = query_check
        self.every = every
        self.staleness = Staleness(staleness_every)
        self.who = who
        self.steps: list[int] = []
        self.failed: list[int] = []
        self.last: Refresh | None = None
        self.last_at: int | None = None
        self.has_new_queries = False
        self.first_steps: dict[int, int] = {}
        self._yield_to = yield_to
        self._kept = KeptState(loop.module, left_alone=loop.left_alone)

    def is_due(self, step: int) -> bool:
        """Whether it is time for a refresh before this optimizer step."""
        return self.last_at is None or step - self.last_at >= self.every

    def add(self, source: Any, step: int) -> list[int]:
        """Add queries, which are traced from this step on.

        Returns:
            Ids of those that are new.
        """
        new: list[int] = self.queries.add(source).tolist()
        self.first_steps |= dict.fromkeys(new, step)
        self.has_new_queries = self.has_new_queries or bool(new)
        return new

    def refresh(self, step: int) -> None:
        """Compute the queries' gradients at the current weights, and close the interval that ends here.

        Raises:
            ValueError: If the losses are not one finite number a query, at the first refresh.
        """
        preconditioners_before = self._divide_by_second_moments()
        whole = self.scoring.keeps_queries_whole
        compare = None
        if self.query_check is not None and self.last is None:
            check = self.query_check

            def compare(losses: Tensor, gradients: PerExampleGradients, query_ids: Tensor) -> None:
                check.compare(losses, gradients, query_ids, whole=whole)

        try:
            current = self._run_queries(step, compare, whole=whole)
        except NotFiniteError as error:
            if self.last is None:
                raise
            if self.scoring.whitened is not None:
                self.scoring.whitened.precondition_with(preconditioners_before)
            self._keep_old_queries(step, error)
            return
        closing = None if self.ledger is None else self.ledger.close(current)
        is_kept = self.staleness.before_refresh(self.scoring.queries, len(self.steps))
        self.scoring.refresh(current.gradients, current.losses, current.learned, keep_last=is_kept)
        if closing is not None:
            assert self.ledger is not None
            gained, by_given = self.scoring.take_gains()
            is_compared = self.scoring.rules.projection is not None and not self.ledger.projects_all
            log_interval(self.loop, closing.finish(gained, by_given if is_compared else None), step, len(self.steps))
        if self.ledger is not None:
            self.ledger.open(current, self.parameters.all())
        self._set_queries_of_checks(len(self.steps))
        self.last = current
        self.last_at = step
        self.steps.append(step)
        self.has_new_queries = False

    def _set_queries_of_checks(self, refresh: int) -> None:
        for check in self.parameters.conservation.values():
            assert self.scoring.queries is not None
            check.set_queries(self.scoring.queries, refresh)

    def _run_queries(self, step: int, compare: Compare | None, *, whole: bool) -> Refresh:
        """Differentiate the queries, again and again until all that can't be read off its own layers is known."""
        while True:
            gaps = {} if self.ledger is None else self.parameters.gaps()
            try:
                with self.parameters.all_require_gradients(), self._kept.in_place():
                    return self.queries.run(self.hooks.queries, step, gaps, compare, whole=whole)
            except UnreadableError as error:
                self._yield_to(error)

    def rows(self, step: int) -> LayoutBook | None:
        """Find out whose rows are whose in the queries' passes; None if some can't be told apart."""
        try:
            self._run_queries(step, None, whole=self.scoring.keeps_queries_whole)
        except ValueError:
            return None
        return self.hooks.queries.book

    def _divide_by_second_moments(self) -> dict[str, Preconditioner]:
        """Let whitened scores divide gradients by the optimizer's current second moments.

        Returns:
            The preconditioners so far.
        """
        whitened = self.scoring.whitened
        if whitened is None or not whitened.divides:
            return {}
        previous, elementwise = whitened.preconditioners, whitened.rules.preconditioner == "elementwise"
        whitened.precondition_with(self.parameters.preconditioners(elementwise=elementwise))
        return previous

    def _keep_old_queries(self, step: int, error: NotFiniteError) -> None:
        """Go on with the previous gradients: that training diverged is no reason to lose the scores so far."""
        if not self.failed:
            warn(f"{self.who}: at step {step} the queries could not be differentiated anew. {error}")
        self.failed.append(step)
        self.last_at = step

    def state(self) -> dict[str, Any]:
        """Return what was refreshed when, and the last refresh."""
        return {
            "refreshed_at": self.last_at,
            "refreshes": list(self.steps),
            "query_first_steps": dict(self.first_steps),
            "last": self.last,
            **self.staleness.state(),
        }

    def load(self, shared: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state` was called; :meth:`Scoring.load` comes before."""
        self.last_at, self.steps = shared["refreshed_at"], shared["refreshes"]
        self.first_steps, self.last = shared["query_first_steps"], shared["last"]
        self.staleness.load(shared)
        self._set_queries_of_checks(len(self.steps) - 1)
