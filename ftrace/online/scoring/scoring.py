"""From steps and refreshes to scores: which query gradient each step is multiplied with, and when.

``left`` multiplies a step with the query gradients of the last refresh. ``trapezoid`` interpolates: the j-th of k steps
between two refreshes moves the weights from j/k to (j+1)/k of the way, so it gets ``(1 - s) G(r) + s G(r')`` with ``s =
(j + 1/2) / k``, and is held until the next refresh.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ftrace.gradients import (
    ParameterStep,
    PerExampleGradients,
    Preconditioner,
    QueryGradients,
    precondition,
    project,
    times,
)
from ftrace.online.scoring.contributions import (
    Contribution,
    Moment,
    Shares,
    StepTaken,
    added,
    all_finite,
    book,
    multiply,
    of_cosine,
    of_dot,
    padded,
    weighted,
)
from ftrace.online.scoring.momentum import HeldStep, MomentumRing
from ftrace.online.scoring.rules import OF_THE_STEP, ScoringRules
from ftrace.online.scoring.whitened import WhitenedProducts
from ftrace.scores import ScoreAccumulator, Sum


class Scoring:
    """Adds up the scores of one run.

    Args:
        rules: How.
        sums: Where they go.
        names: The covered parameters.
        batches: How many batches are multiplied with the same query gradients, about.
        divides: Whether an optimizer keeps second moments.
    """

    def __init__(
        self,
        rules: ScoringRules,
        sums: ScoreAccumulator,
        names: Collection[str],
        batches: float,
        *,
        divides: bool = False,
    ) -> None:
        self.rules = rules
        self.sums = sums
        self.names = tuple(names)
        self.batches = batches
        self.queries: QueryGradients | None = None
        self.whole: PerExampleGradients | None = None  # before projection
        self.pending: list[StepTaken] = []
        self.rings: dict[int, MomentumRing] = {}
        self.learned: Tensor | None = None
        self.gained = torch.zeros(0, dtype=torch.float64)  # by this process's examples, since it was last taken
        self.gained_by_given = torch.zeros(0, dtype=torch.float64)
        self._before: PerExampleGradients | None = None
        self._query_norms = torch.empty(0)
        self.whitened: WhitenedProducts | None = None
        if rules.whitens:
            assert rules.projection is not None
            by_layer = "layer" in rules.breakdown
            self.whitened = WhitenedProducts(
                rules.whitening, rules.projection, names, divides=divides, by_layer=by_layer, kinds=rules.kinds
            )

    def see(self, names: Collection[str]) -> None:
        """More parameters are covered from here on."""
        grown, self.names = set(names) != set(self.names), tuple(names)
        if self.whitened is not None and grown:
            self.whitened.see(names)
            if self.whole is not None:
                self.whitened.take_queries(self._queries_to_whiten())
        if self.queries is not None and "cosine" in self.rules.kinds:
            self._query_norms = self.queries.norms(self.names)

    @property
    def keeps_queries_whole(self) -> bool:
        """Whether query gradients are preconditioned before they are projected."""
        precise = "update" in self.rules.kinds or self.keeps_examples_whole
        return precise and self.rules.projection is not None

    @property
    def keeps_examples_whole(self) -> bool:
        """Whether examples' gradients are preconditioned before they are projected."""
        return self.whitened is not None and self.whitened.divides

    def holds(self, elementwise: bool) -> bool:
        """Whether contributions must be kept after they have been multiplied once.

        Args:
            elementwise: Whether the optimizer multiplies gradients with more than a number for each parameter.
        """
        update = "update" in self.rules.kinds
        return self.rules.trapezoid or (update and (elementwise or self.rules.exact_momentum))

    def refresh(
        self, gradients: PerExampleGradients, losses: Tensor, learned: Tensor | None, *, keep_last: bool = False
    ) -> None:
        """New query gradients. Steps that waited for them are booked.

        Args:
            gradients: Of all queries.
            losses: Theirs, ``[Q]``, in nats.
            learned: Which of them are answered right; None where nobody can tell.
            keep_last: Whether the last ones are still needed, so that their memory may not be used again.
        """
        projected = self._take_queries(gradients)
        if self.queries is None or len(self.queries) != len(projected) or self.pending or keep_last:
            before, self.queries = self.queries, QueryGradients(projected, batches=self.batches)
        else:
            before = self.queries
            self.queries.replace(projected)
        self.see(self.names)
        if self.whitened is not None:
            self.whitened.weigh(losses)
            self.whitened.refresh(self._queries_to_whiten())
        self._close(before)
        if learned is not None:
            self.learned = learned if self.learned is None else _or(self.learned, learned)

    def _take_queries(self, gradients: PerExampleGradients) -> PerExampleGradients:
        """Keep query gradients as they came; returns them as examples' are, projected where these are."""
        self.whole = gradients
        if not self.keeps_queries_whole:
            return gradients
        assert self.rules.projection is not None
        return project(gradients, self.rules.projection)

    def _queries_to_whiten(self) -> PerExampleGradients:
        """Query gradients as :class:`WhitenedProducts` takes them."""
        assert self.whole is not None
        assert self.whitened is not None
        if self.whitened.divides or not self.keeps_queries_whole:
            return self.whole
        return project(self.whole, self.whitened.projection)

    def restore_queries(
        self, now: PerExampleGradients, losses: Tensor, before: PerExampleGradients | None
    ) -> QueryGradients:
        """The query gradients of a run that is resumed: of its last refresh, with losses, and of the one before."""
        self.queries = QueryGradients(self._take_queries(now), batches=self.batches)
        if self.whitened is not None:
            self.whitened.weigh(losses)
            self.whitened.take_queries(self._queries_to_whiten())
        self._before = before
        self.see(self.names)
        return self.queries

    def multiply(
        self,
        example_ids: Tensor,
        gradients: PerExampleGradients,
        shares: Shares,
        factor: float,
        *,
        elementwise: bool,
        whole: PerExampleGradients | None = None,
    ) -> Contribution:
        """What one backward pass has added to the gradients of one optimizer's parameters.

        Args:
            example_ids: ``[B]``.
            gradients: The examples', projected where there is a projection.
            shares: The optimizer's parameters.
            factor: As in :class:`Contribution`.
            elementwise: Whether the optimizer multiplies gradients with more than a number for each parameter.
            whole: The examples' gradients before projection, where :attr:`keeps_examples_whole`.
        """
        assert self.queries is not None
        found = Contribution(example_ids, factor, shares)
        kinds = self.rules.kinds
        names = [name for of_share in shares.values() for name in of_share]
        if "dot" in kinds or "cosine" in kinds or not (elementwise or self.rules.exact_momentum):
            norms = "cosine" in kinds
            found.products, found.norms = multiply(gradients, self.queries, shares, factor, norms=norms)
        if self.whitened is not None:
            own = self.whitened.project((gradients if whole is None else whole).only(names))
            found.projected = {name: factor * phi for name, phi in own.items()}
            found.whitened = self.whitened.cosines(found.projected, names)
        if self.holds(elementwise):
            found.gradients = gradients.only(names)
        return found

    def take(self, step: StepTaken) -> bool:
        """Book a step, as far as that is possible before the next refresh.

        Returns:
            Whether its products are finite: otherwise nothing has been booked.
        """
        assert self.queries is not None
        directions = self._update_directions(step)
        found = [self._scores(step, one, directions, of_the_step=True) for one in step.contributions]
        if not all(all_finite(of_batch.values()) for of_batch in found):
            return False
        if step.given is not None and not self.rules.exact_momentum:
            step.left_of_given = self._scores(step, step.given, directions, again=True)
            if not self.rules.trapezoid:
                self._gain(step.left_of_given, by_given=True)
        for contribution, of_batch in zip(step.contributions, found, strict=True):
            now = {k: v for k, v in of_batch.items() if k.kind in OF_THE_STEP or not self.rules.trapezoid}
            book(self.sums, contribution.example_ids, now, step.moment)
            self._gain(now)
            if self.rules.trapezoid:
                step.left.append({k: v for k, v in of_batch.items() if k.kind not in OF_THE_STEP})
        if self.rules.trapezoid:
            self.pending.append(step)
        elif self._follows_momentum(step):
            self._hold(step, self._directions(step, self.whole))
        if self.whitened is not None:
            self.whitened.step([one.projected for one in step.contributions], step.names)
        return True

    def finish(self) -> None:
        """Training has ended: nothing is going to follow."""
        if self.pending:  # without a last refresh, the last gradients are the best there are
            self._close(self.queries)
        for ring in self.rings.values():
            ring.flush()

    def _close(self, before: QueryGradients | None) -> None:
        """The interval that ends here: its steps lie between the query gradients of before and those of now."""
        assert self.queries is not None
        pending, self.pending = self.pending, []
        for index, step in enumerate(pending):
            share = (index + 0.5) / len(pending)
            directions = None if self.queries is before else self._update_directions(step)
            for contribution, left in zip(step.contributions, step.left, strict=True):
                found = self._interpolated(step, contribution, left, share, before, directions)
                book(self.sums, contribution.example_ids, found, step.moment)
                self._gain(found)
            if step.given is not None and not self.rules.exact_momentum:
                given = self._interpolated(step, step.given, step.left_of_given, share, before, directions)
                self._gain(given, by_given=True)
            if self._follows_momentum(step):
                assert before is not None
                ahead = self._directions(step, self.whole)
                behind = self._directions(step, self._before) if self.queries is not before else ahead
                self._hold(step, {n: (1 - share) * old + share * ahead[n][: len(old)] for n, old in behind.items()})
        if self.rules.trapezoid:
            self._before = self.whole

    def _interpolated(
        self,
        step: StepTaken,
        contribution: Contribution,
        left: dict[Sum, Tensor],
        share: float,
        before: QueryGradients | None,
        directions: QueryGradients | None,
    ) -> dict[Sum, Tensor]:
        if self.queries is before:
            return left
        return added(left, self._scores(step, contribution, directions, again=True), share)

    def _gain(self, found: Mapping[Sum, Tensor], *, by_given: bool = False) -> None:
        values = found.get(Sum("update"))
        if values is not None:
            self._add_gain(values.sum(0).double().cpu(), by_given=by_given)

    def _add_gain(self, gained: Tensor, *, by_given: bool = False) -> None:
        queries = len(self.sums.query_ids)
        if by_given:
            self.gained_by_given = padded(self.gained_by_given, queries) + padded(gained, queries)
        else:
            self.gained = padded(self.gained, queries) + padded(gained, queries)

    def take_gains(self) -> tuple[Tensor, Tensor]:
        """What ``update`` has gained since this was last called, ``[Q]``: by examples, and by the true gradient."""
        queries = len(self.sums.query_ids)
        found = (padded(self.gained, queries), padded(self.gained_by_given, queries))
        self.gained = self.gained_by_given = torch.zeros(queries, dtype=torch.float64)
        return found

    def _follows_momentum(self, step: StepTaken) -> bool:
        return self.rules.exact_momentum and bool(step.steps)

    def _hold(self, step: StepTaken, directions: dict[str, Tensor]) -> None:
        ring = self.rings.setdefault(step.optimizer, MomentumRing(self.sums))
        scalars = {name: replace(own, scale=1.0) for name, own in step.steps.items() if name in directions}
        held = HeldStep(step.moment, step.clip, scalars, directions, step.contributions, step.given)
        gained, given = ring.add(held)
        self._add_gain(gained)
        self._add_gain(given, by_given=True)

    def _scores(
        self,
        step: StepTaken,
        contribution: Contribution,
        directions: QueryGradients | None,
        *,
        of_the_step: bool = False,
        again: bool = False,
    ) -> dict[Sum, Tensor]:
        """Scores of one contribution with the query gradients of now.

        Args:
            step: What it was part of.
            contribution: The contribution.
            directions: As :meth:`_update_directions` gives them.
            of_the_step: Whether the kinds that are not interpolated are wanted, too.
            again: Whether its products are of other query gradients.
        """
        kinds = self.rules.kinds
        products = contribution.products
        scalar_update = "update" in kinds and directions is None and not self.rules.exact_momentum
        if again and (scalar_update or "dot" in kinds):
            assert contribution.gradients is not None
            assert self.queries is not None
            products, _ = multiply(
                contribution.gradients, self.queries, contribution.shares, contribution.factor, norms=False
            )
        found: dict[Sum, Tensor] = {}
        if "dot" in kinds:
            assert products is not None
            found |= of_dot(products, step.rates, step.clip)
        if "cosine" in kinds and of_the_step:
            found |= of_cosine(contribution, self._query_norms)
        if of_the_step:
            found |= contribution.whitened
        if scalar_update:
            assert products is not None
            weights = {share: step.clip * _eventual_rate(step.steps, contribution.shares[share]) for share in products}
            found |= weighted("update", products, weights)
        elif directions is not None:
            assert contribution.gradients is not None
            shares = {s: [n for n in names if n in step.steps] for s, names in contribution.shares.items()}
            of_update, _ = multiply(contribution.gradients, directions, shares, contribution.factor, norms=False)
            found |= weighted("update", of_update, dict.fromkeys(of_update, step.clip))
        return found

    def _update_directions(self, step: StepTaken) -> QueryGradients | None:
        """What all contributions of a step are multiplied with for ``update``: made once for all of them.

        None where their products with the queries, times numbers, do, or momentum is followed.
        """
        if "update" not in self.rules.kinds or self.rules.exact_momentum or not step.is_elementwise:
            return None
        scales = {name: times(own.scale, own.eventual) for name, own in step.steps.items()}
        batches = max(1, len(step.contributions))  # none where the step's layers ran on other processes only
        return QueryGradients(self._scaled(self.whole, scales), batches=batches)

    def _directions(self, step: StepTaken, queries: PerExampleGradients | None) -> dict[str, Tensor]:
        """Query gradients times the step's scale: dense, by parameter, ``[Q, ...]``."""
        scaled = self._scaled(queries, {name: own.scale for name, own in step.steps.items()})
        return {name: scaled.dense(name) for name in scaled.parts}

    def _scaled(
        self, queries: PerExampleGradients | None, scales: Mapping[str, float | Preconditioner]
    ) -> PerExampleGradients:
        assert queries is not None
        scaled = precondition(queries.only(scales), scales)
        return scaled if self.rules.projection is None else project(scaled, self.rules.projection)

    def moment(self, epoch: int) -> Moment:
        """Now, as far as scores are broken down by it."""
        learned = self.learned
        if "learned" in self.rules.breakdown and learned is None:
            learned = torch.zeros(len(self.sums.query_ids), dtype=torch.bool)
        by = self.rules.breakdown
        return Moment(epoch if "epoch" in by else None, learned if "learned" in by else None)


def _eventual_rate(steps: Mapping[str, ParameterStep], names: Sequence[str]) -> float:
    """Scale times eventual effect, which parameters of one share have in common; 0 where the step left them out."""
    for name in names:
        if name in steps:
            scale = steps[name].scale
            assert isinstance(scale, float)
            return scale * steps[name].eventual
    return 0.0


def _or(before: Tensor, now: Tensor) -> Tensor:
    """Learned once is learned, for the queries of before; the later ones as they are."""
    return torch.cat([before | now[: len(before)], now[len(before) :]])
