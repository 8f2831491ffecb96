"""The scores of a run: which query gradients each step is multiplied with, and when.

``left`` multiplies a step with the query gradients of the last refresh. ``trapezoid`` interpolates: the j-th of k steps
between two refreshes moves the weights from j/k to (j+1)/k of the way, so it is held until the next refresh and
multiplied with ``(1 - s) G(r) + s G(r')``, where ``s = (j + 1/2) / k``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ftrace.gradients import PerExampleGradients, Projection, Projections, QueryGradients, project
from ftrace.online.queries.answers import AnswerKeeper
from ftrace.online.scoring.accumulator import ScoreAccumulator
from ftrace.online.scoring.balances import Balances, Moments
from ftrace.online.scoring.contributions import (
    Contribution,
    Moment,
    Shares,
    StepTaken,
    all_finite,
    book_scores,
    copied,
    interpolated,
    multiply,
)
from ftrace.online.scoring.directions import QueryDirections, UpdateSide
from ftrace.online.scoring.early_products import EarlyProducts
from ftrace.online.scoring.exact_momentum import ExactMomentum
from ftrace.online.scoring.forms import Forms
from ftrace.online.scoring.gains import Gains, gain
from ftrace.online.scoring.rules import PER_STEP_KINDS, ScoringRules
from ftrace.online.scoring.whitened import QueryReduction, WhitenedProducts
from ftrace.scores import Sum


class Scoring:
    """The scores of one run, and the steps that are not booked yet.

    Args:
        rules: How scores are computed.
        sums: Where they are added up.
        names: The covered parameters.
        batches: The approximate number of batches that are multiplied with the same query gradients.
        answers: When queries were right, by which scores may be broken down.
        divides: Whether an optimizer keeps second moments.

    Attributes:
        pending: The steps that wait for the next refresh.
        gains: The sums of ``update`` scores, for the ledger.
        whitened: The state of whitened scores; None if there are none.
        directions: The query gradients of the last refresh.
        momentum: The steps whose gradients still have an effect through momentum, if it is followed exactly.
        balanced: Whether the two sides of projected ``update`` products are balanced, so that examples' gradients are
            needed unprojected.
    """

    def __init__(
        self,
        rules: ScoringRules,
        sums: ScoreAccumulator,
        names: Collection[str],
        batches: float,
        answers: AnswerKeeper,
        *,
        divides: bool = False,
    ) -> None:
        self.rules = rules
        self.sums = sums
        self.names = tuple(names)
        self.pending: list[StepTaken] = []
        self.answers = answers
        self.gains = Gains(sums)
        self._previous: PerExampleGradients | None = None
        self.balanced = divides and rules.projection is not None and "update" in rules.kinds
        self.whitened: WhitenedProducts | None = None
        if rules.whitens:
            assert rules.projection is not None
            by_layer = "layer" in rules.breakdown
            self.whitened = WhitenedProducts(
                rules.whitening, rules.projection, names, divides=divides, by_layer=by_layer, kinds=rules.kinds
            )
        keeps_unprojected = self.needs_queries_unprojected and not self.reduces_queries
        self.directions = QueryDirections(rules, batches, keeps_unprojected=keeps_unprojected)
        self.momentum = ExactMomentum(sums, self.directions)

    @property
    def queries(self) -> QueryGradients | None:
        """The query gradients of the last refresh, as contributions are multiplied with them; None before the first."""
        return self.directions.queries

    def cover(self, names: Collection[str]) -> None:
        """Take the names of the parameters that are now covered."""
        grown, self.names = set(names) != set(self.names), tuple(names)
        if self.whitened is not None and grown:
            self.whitened.cover(names)
            if self.directions.unprojected is not None and not self.reduces_queries:
                self.whitened.take_queries(self._queries_to_whiten())
        self.directions.cover(self.names)

    @property
    def _dividing(self) -> WhitenedProducts | None:
        """The state of whitened scores if these divide gradients by the root of second moments."""
        return self.whitened if self.whitened is not None and self.whitened.divides else None

    @property
    def needs_queries_unprojected(self) -> bool:
        """Whether query gradients are preconditioned before they are projected, and so are needed unprojected."""
        precise = "update" in self.rules.kinds or self._dividing is not None
        return precise and self.rules.projection is not None

    @property
    def reduces_queries(self) -> bool:
        """Whether query gradients are needed unprojected only to be divided for whitening, as soon as they are read."""
        return self.needs_queries_unprojected and "update" not in self.rules.kinds and not self.rules.trapezoid

    def query_reduction(self) -> QueryReduction | None:
        """Make what reduces the query gradients of one refresh; None unless :attr:`reduces_queries`."""
        return QueryReduction(self.whitened) if self.whitened is not None and self.reduces_queries else None

    @property
    def keeps_examples_unprojected(self) -> bool:
        """Whether examples' gradients are preconditioned before they are projected, and so are needed unprojected."""
        return self.balanced or self._dividing is not None

    def example_projections(self, begins: Mapping[int, bool], *, may_change: bool) -> tuple[Projection, ...]:
        """Choose the projections with which examples' gradients are recorded, so that none are held unprojected.

        Args:
            begins: By optimizer, whether the next backward pass begins a new gradient, as far as is known.
            may_change: Whether queries may have to be refreshed before then, or gradients be zeroed, in any order.

        Returns:
            The plain one first; nothing if gradients must be recorded unprojected.
        """
        if self.rules.projection is None or (may_change and self.keeps_examples_unprojected):
            return ()
        projections = [self.rules.projection]
        if self._dividing is not None:
            if self._dividing.divides_elementwise:
                return ()
            projections.append(self._dividing.dividing)
        if self.balanced:
            if len(begins) > 1:
                return ()
            (optimizer, begun), *_ = begins.items()
            balanced = self._balances(optimizer).next_projection(begins=begun)
            if balanced is None:
                return ()
            projections.append(balanced)
        return tuple(dict.fromkeys(projections))

    def is_prepared(self, projections: Projections | None) -> bool:
        """Whether a recording projects with the second moments of the last refresh, so that they must stay."""
        return projections is not None and self._dividing is not None

    def early_products(
        self, shares: Mapping[int, Shares], *, elementwise: bool, also: Callable[[PerExampleGradients], None]
    ) -> EarlyProducts | None:
        """Prepare to multiply gradients inside of the next backward pass.

        Args:
            shares: By optimizer, the names of its parameters by share.
            elementwise: Whether an optimizer scales the elements of a parameter's gradient differently.
            also: Called with all gradients before they are multiplied.

        Returns:
            None if gradients are needed afterwards, too, or are projected as they arrive.
        """
        if self.rules.projection is not None or self.holds(elementwise) or self.queries is None:
            return None
        return EarlyProducts(self.queries, shares, norms="cosine" in self.rules.kinds, also=also)

    def forms(
        self,
        read: Sequence[PerExampleGradients],
        projections: Projections | None,
        early: EarlyProducts | None = None,
    ) -> Forms:
        """Name what was read off a recording whose projections :meth:`example_projections` has chosen.

        Args:
            read: The gradients once for each projection, or unprojected.
            projections: Those of the recording; None if it is unprojected.
            early: What was multiplied during the backward pass already.
        """
        if projections is None:
            (gradients,) = read
            if self.rules.projection is None:
                return Forms(gradients, early=early)
            return Forms(project(gradients, self.rules.projection), unprojected=gradients)
        known = dict(zip(projections.members, read, strict=True))
        divided = None if self._dividing is None else known[self._dividing.dividing]
        if not self.balanced:
            return Forms(read[0], divided=divided)
        (balances,) = self.directions.balances.values()  # of several optimizers, gradients are recorded unprojected
        return Forms(read[0], divided=divided, balanced=read[-1], balance=balances.key_of(projections.members[-1]))

    def holds(self, elementwise: bool) -> bool:
        """Whether contributions must be kept after they have been multiplied once.

        Args:
            elementwise: Whether the optimizer scales the elements of a parameter's gradient differently.
        """
        update = "update" in self.rules.kinds
        return self.rules.trapezoid or (update and (elementwise or self.rules.exact_momentum))

    # Query gradients

    def refresh(
        self,
        gradients: PerExampleGradients,
        losses: Tensor,
        lengths: Tensor | None = None,
        *,
        divided: PerExampleGradients | None = None,
        keep_last: bool = False,
    ) -> None:
        """Take new query gradients, and book the steps that waited for them.

        Args:
            gradients: The gradients of all queries; projected if :attr:`reduces_queries`.
            losses: The losses of all queries, ``[Q]``, in nats.
            lengths: The numbers of tokens of their answers, ``[Q]``; None if losses are taken as they are.
            divided: The gradients as whitening divides and projects them, if :attr:`reduces_queries`.
            keep_last: Whether the previous ones are still needed, so that their memory must not be reused.
        """
        previous = self.directions.refresh(gradients, keeps_last=bool(self.pending) or keep_last)
        self.cover(self.names)
        if self.whitened is not None:
            self.whitened.weigh(losses, lengths)
            self.whitened.refresh(self._queries_to_whiten() if divided is None else divided)
        self._close(previous)

    def _queries_to_whiten(self) -> PerExampleGradients:
        """Return the query gradients, divided and projected for whitening."""
        unprojected = self.directions.unprojected
        assert unprojected is not None
        assert self.whitened is not None
        if self.needs_queries_unprojected and not self.whitened.divides:
            unprojected = project(unprojected, self.whitened.projection)
        return self.whitened.divided(unprojected)

    # Steps

    def multiply(
        self,
        example_ids: Tensor,
        forms: Forms,
        shares: Shares,
        factor: float,
        *,
        elementwise: bool,
        optimizer: int = 0,
        begins: bool = True,
    ) -> Contribution:
        """Multiply the contributions of one backward pass to the gradients of one optimizer's parameters.

        Args:
            example_ids: ``[B]``.
            forms: The examples' gradients.
            shares: The optimizer's parameters, by share.
            factor: As in :class:`Contribution`.
            elementwise: Whether the optimizer scales the elements of a parameter's gradient differently.
            optimizer: The index of the optimizer.
            begins: Whether these are the first contributions to its current gradients.
        """
        assert self.queries is not None
        gradients, unprojected = forms.plain, forms.unprojected
        contribution = Contribution(example_ids, factor, shares)
        kinds = self.rules.kinds
        names = [name for names_of_share in shares.values() for name in names_of_share]
        if "dot" in kinds or "cosine" in kinds or not (elementwise or self.rules.exact_momentum):
            norms = "cosine" in kinds
            early = forms.early
            contribution.products, contribution.norms = multiply(
                gradients,
                self.queries,
                shares,
                factor,
                norms=norms,
                early=None if early is None else early.products.get(optimizer),
                early_square_norms=0.0 if early is None else early.square_norms.get(optimizer, 0.0),
            )
        if self.whitened is not None:
            divided = forms.divided
            if divided is None:
                to_divide = unprojected if unprojected is not None and self.whitened.divides else gradients
                divided = self.whitened.divided(to_divide.only(names))
            projected = self.whitened.rows(divided, names)
            contribution.projected = {name: factor * phi for name, phi in projected.items()}
            contribution.whitened = self.whitened.cosines(contribution.projected, names)
        if self.holds(elementwise):
            contribution.gradients = gradients.only(names)
        if self.balanced and elementwise:
            balances = self._balances(optimizer)
            if begins:
                balances.begin()
            if forms.balanced is not None:
                contribution.balanced, contribution.balance = forms.balanced.only(names), forms.balance
            else:
                assert unprojected is not None
                contribution.unprojected = unprojected.only(names)
                if balances.current:
                    contribution = balances.balanced(contribution)
        return contribution

    def _balances(self, optimizer: int) -> Balances:
        assert self.rules.projection is not None
        return self.directions.balances.setdefault(optimizer, Balances(self.rules.projection))

    def _balance(self, step: StepTaken, moments: Moments | None) -> None:
        """Project what a step needs for ``update``, and take a new balance after it if that is due."""
        if not (self.balanced and step.is_elementwise):
            if step.given is not None:
                step.given.unprojected = None
            return
        assert moments is not None
        balances = self._balances(step.optimizer)
        if not step.contributions:  # those of other processes began with the latest balance
            balances.begin()
        keys = {contribution.balance for contribution in step.contributions} or {balances.current}
        given = step.given
        if len(keys) > 1:  # none serves all, so the plain projection does
            step.contributions = [replace(c, balanced=None, balance=0, unprojected=None) for c in step.contributions]
            step.given = None if given is None else replace(given, unprojected=None)
        else:
            (step.balance,) = keys
            step.is_exact = not step.balance
            if not step.is_exact:
                step.given = None if given is None else balances.balanced(given, step.balance)
            elif given is not None:
                given.unprojected = copied(given.unprojected)  # the next backward pass may add to the gradients
        ring = self.momentum.rings.get(step.optimizer)
        in_use = [*keys, *(held.balance for held in self.pending if held.optimizer == step.optimizer)]
        if step.optimizer in self.momentum.first:
            in_use += balances.known
        balances.step(step.steps.keys(), moments, [*in_use, *(ring.balances if ring is not None else ())])

    def take(self, step: StepTaken, moments: Moments | None = None) -> bool:
        """Book a step, as far as that is possible before the next refresh.

        Args:
            moments: Computes one over the root of the optimizer's second moments after the step, by parameter: of rank
                one for matrices. Needed if :attr:`balanced`.

        Returns:
            Whether its products are finite; otherwise nothing has been booked.
        """
        assert self.queries is not None
        has_side = step.is_elementwise and not self.rules.exact_momentum
        sampled = self.directions.prepared.sample_given(step.given) if has_side else None
        self._balance(step, moments)
        side = self.directions.update_side(step, sampled)
        scores = [self.directions.scores(step, c, side, per_step=True) for c in step.contributions]
        if not all(all_finite(of_batch.values()) for of_batch in scores):
            return False
        if step.given is not None and not self.rules.exact_momentum:
            step.left_of_given = self.directions.scores(step, step.given, side, again=True)
            if not self.rules.trapezoid:
                self.gains.add(by_given=gain(step.left_of_given))
        for contribution, of_batch in zip(step.contributions, scores, strict=True):
            final = {k: v for k, v in of_batch.items() if k.kind in PER_STEP_KINDS or not self.rules.trapezoid}
            book_scores(self.sums, contribution.example_ids, final, step.moment)
            self.gains.add(gain(final))
            if self.rules.trapezoid:
                step.left.append({k: v for k, v in of_batch.items() if k.kind not in PER_STEP_KINDS})
        held = replace(step, contributions=[self._held(contribution) for contribution in step.contributions])
        if self.rules.trapezoid:
            self.pending.append(held)
        elif self._follows_momentum(step):
            assert self.directions.unprojected is not None
            self.gains.add(*self.momentum.take(held, [self.directions.unprojected]))
        if self.whitened is not None:
            self.whitened.step([contribution.projected for contribution in step.contributions], step.names)
        return True

    def _held(self, contribution: Contribution) -> Contribution:
        """Return what is needed of a contribution once its step has been taken."""
        if contribution.balanced is None:
            return contribution
        gradients = contribution.gradients if "dot" in self.rules.kinds else None
        return replace(contribution, gradients=gradients, projected={}, whitened={})

    def finish(self) -> None:
        """Book all steps that still wait, since training has ended."""
        if self.pending:  # if there was no last refresh, the previous query gradients must do
            self._close(self.queries)
        self.momentum.finish()

    def _close(self, previous: QueryGradients | None) -> None:
        """Book the pending steps of the interval that just ended, interpolating from previous to current gradients."""
        assert self.queries is not None
        is_same = self.queries is previous
        pending, self.pending = self.pending, []
        for index, step in enumerate(pending):
            weight = (index + 0.5) / len(pending)
            side = None if is_same else self.directions.update_side(step)
            for contribution, left in zip(step.contributions, step.left, strict=True):
                scores = self._interpolated(step, contribution, left, weight, is_same, side)
                book_scores(self.sums, contribution.example_ids, scores, step.moment)
                self.gains.add(gain(scores))
            if step.given is not None and not self.rules.exact_momentum:
                given = self._interpolated(step, step.given, step.left_of_given, weight, is_same, side)
                self.gains.add(by_given=gain(given))
            if self._follows_momentum(step):
                assert self.directions.unprojected is not None
                assert self._previous is not None
                queries = [self._previous, self.directions.unprojected]
                self.gains.add(*self.momentum.take(step, queries[1:] if is_same else queries, weight))
        if self.rules.trapezoid:
            self._previous = self.directions.unprojected

    def _interpolated(
        self,
        step: StepTaken,
        contribution: Contribution,
        left: dict[Sum, Tensor],
        weight: float,
        is_same: bool,
        side: UpdateSide | None,
    ) -> dict[Sum, Tensor]:
        if is_same:
            return left
        return interpolated(left, self.directions.scores(step, contribution, side, again=True), weight)

    def _follows_momentum(self, step: StepTaken) -> bool:
        return self.rules.exact_momentum and bool(step.steps)

    def moment(self, epoch: int) -> Moment:
        """Return the current time, as far as scores are broken down by it."""
        by = self.rules.breakdown
        learned = self.answers.ever_right(len(self.sums.query_ids)) if "learned" in by else None
        return Moment(epoch if "epoch" in by else None, learned)

    # State

    def state(self) -> dict[str, Any]:
        """Return all state except the sums, which are as large as the scores."""
        return {
            "before": self._previous,
            "pending": list(self.pending),
            "momentum": self.momentum.state(),
            "gained": self.gains.by_examples,
            "gained_by_given": self.gains.by_given,
            "prepared": self.directions.prepared.state(),
            "balances": {index: balances.state() for index, balances in self.directions.balances.items()},
            "whitened": None if self.whitened is None else self.whitened.state(),
            "whitened_queries": self.whitened.queries if self.whitened and self.reduces_queries else None,
        }

    def load(
        self,
        states: Sequence[Mapping[str, Any]],
        shared: Mapping[str, Any],
        queries: PerExampleGradients,
        losses: Tensor,
        lengths: Tensor | None,
    ) -> None:
        """Restore what :meth:`state` returned.

        Args:
            states: The states of the processes that this one takes over; none, if there are now more processes.
            shared: The state of any process.
            queries: The query gradients of the last refresh.
            losses: The queries' losses at the last refresh, ``[Q]``.
            lengths: The numbers of tokens of their answers, as then.
        """
        for optimizer, of_balances in shared["balances"].items():
            self._balances(optimizer).load(of_balances)
        if "prepared" in shared:  # earlier versions prepared directions at each step
            self.directions.prepared.load(shared["prepared"])
        if self.whitened is not None:
            self.whitened.load([state["whitened"] for state in states], shared["whitened"])
        whitened_queries = shared.get("whitened_queries")
        reduction = self.query_reduction() if whitened_queries is None else None
        if reduction is not None:  # earlier versions kept query gradients unprojected
            queries = reduction(queries)
        self.directions.restore(queries)
        if self.whitened is not None:
            self.whitened.weigh(losses, lengths)
            if whitened_queries is not None:
                self.whitened.take_whitened(whitened_queries, queries)
            else:
                self.whitened.take_queries(self._queries_to_whiten() if reduction is None else reduction.divided)
        self._previous = shared["before"]
        self.cover(self.names)
        for index, state in enumerate(states):
            self.gains.add(state["gained"].cpu())
            if index == 0:
                self.gains.add(by_given=state["gained_by_given"].cpu())
                self.pending = list(state["pending"])
            else:  # the same steps, with the batches of another process
                for step, other in zip(self.pending, state["pending"], strict=True):
                    step.contributions += other.contributions
                    step.left += other.left
        if not states:  # the steps are the same on all processes, but this one has no batches of them
            self.pending = [step.emptied() for step in shared["pending"]]
        self.momentum.load([state["momentum"] for state in states], shared["momentum"])
