"""The directions with which contributions are multiplied: query gradients, in the form that each score needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

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
from ftrace.online.scoring.balances import Balances
from ftrace.online.scoring.contributions import (
    Contribution,
    Products,
    Shares,
    StepTaken,
    cosine_scores,
    dot_scores,
    multiply,
    weighted,
)
from ftrace.online.scoring.prepared_directions import PreparedDirections
from ftrace.online.scoring.rules import ScoringRules
from ftrace.scores import Sum

Directions = dict[tuple[int, str], Tensor]


@dataclass(frozen=True)
class UpdateSide:
    """The query side of the ``update`` products of one step.

    Args:
        queries: The query gradients.
        factors: By parameter that takes part, what contributions are multiplied by before: the step's scale and its
            eventual effect. None if that is in ``queries``.
    """

    queries: QueryGradients
    factors: Mapping[str, float | Preconditioner] | None = None

    def multiply(self, gradients: PerExampleGradients, shares: Shares, factor: float) -> Products:
        """Compute the products of contributions by share, ``[B, Q]`` each; the arguments are those of ``multiply``."""
        if self.factors is not None:
            shares = {share: [n for n in names if n in self.factors] for share, names in shares.items()}
            gradients = precondition(gradients.only(self.factors), self.factors)
        return multiply(gradients, self.queries, shares, factor, norms=False)[0]


class QueryDirections:
    """The query gradients of the last refresh.

    Args:
        rules: How scores are computed.
        batches: The approximate number of batches that are multiplied with the same query gradients.
        keeps_unprojected: Whether query gradients are preconditioned before they are projected, and so must be taken
            unprojected.

    Attributes:
        queries: The query gradients as contributions are multiplied with them; None before the first refresh.
        unprojected: The query gradients as they were taken; unprojected if ``keeps_unprojected``.
        balances: By optimizer whose products are balanced, its balances.
        prepared: Directions for projected ``update`` products that serve several steps.
    """

    def __init__(self, rules: ScoringRules, batches: float, *, keeps_unprojected: bool) -> None:
        self.rules = rules
        self.batches = batches
        self.keeps_unprojected = keeps_unprojected
        self.queries: QueryGradients | None = None
        self.unprojected: PerExampleGradients | None = None
        self.balances: dict[int, Balances] = {}
        seed = 0 if rules.projection is None else rules.projection.seed
        self.prepared = PreparedDirections(rules.moments_tolerance, seed)
        self._norms = torch.empty(0)
        self._projected: WeakKeyDictionary[PerExampleGradients, PerExampleGradients] = WeakKeyDictionary()

    def refresh(self, gradients: PerExampleGradients, *, keeps_last: bool) -> QueryGradients | None:
        """Take new query gradients.

        Args:
            gradients: The gradients of all queries.
            keeps_last: Whether the previous ones are still needed, so that their memory must not be reused.

        Returns:
            The previous ones; the same object as the new ones if their memory was reused.
        """
        projected = self._take(gradients)
        self.prepared.forget()
        previous = self.queries
        if previous is None or len(previous) != len(projected) or keeps_last:
            self.queries = QueryGradients(projected, batches=self.batches)
        else:
            previous.replace(projected)
        return previous

    def restore(self, gradients: PerExampleGradients) -> QueryGradients:
        """Take the query gradients of a run that is being resumed."""
        self.queries = QueryGradients(self._take(gradients), batches=self.batches)
        return self.queries

    def _take(self, gradients: PerExampleGradients) -> PerExampleGradients:
        self.unprojected = gradients
        if not self.keeps_unprojected:
            return gradients
        return self._plainly_projected(gradients)

    def _plainly_projected(self, queries: PerExampleGradients) -> PerExampleGradients:
        """Project unprojected query gradients, once."""
        if queries not in self._projected:
            assert self.rules.projection is not None
            self._projected[queries] = project(queries, self.rules.projection)
        return self._projected[queries]

    def cover(self, names: Collection[str]) -> None:
        """Take the names of the parameters that are now covered."""
        if self.queries is not None and "cosine" in self.rules.kinds:
            self._norms = self.queries.norms(names)

    def scores(
        self,
        step: StepTaken,
        contribution: Contribution,
        for_update: UpdateSide | None,
        *,
        per_step: bool = False,
        again: bool = False,
    ) -> dict[Sum, Tensor]:
        """Compute the scores of one contribution with the current query gradients, ``[B, Q]`` each.

        Args:
            step: The step that used the contribution.
            for_update: The query side for ``update``, as :meth:`update_side` returns it.
            per_step: Whether to include the kinds that are not interpolated between refreshes.
            again: Whether to multiply again, since the contribution's products are with other query gradients.
        """
        kinds = self.rules.kinds
        products = contribution.products
        scalar_update = "update" in kinds and for_update is None and not self.rules.exact_momentum
        if again and (scalar_update or "dot" in kinds):
            assert contribution.gradients is not None
            assert self.queries is not None
            products, _ = multiply(
                contribution.gradients, self.queries, contribution.shares, contribution.factor, norms=False
            )
        scores: dict[Sum, Tensor] = {}
        if "dot" in kinds:
            assert products is not None
            scores |= dot_scores(products, step.rates, step.clip)
        if "cosine" in kinds and per_step:
            scores |= cosine_scores(contribution, self._norms)
        if per_step:
            scores |= contribution.whitened
        if scalar_update:
            assert products is not None
            weights = {share: step.clip * _eventual_rate(step.steps, contribution.shares[share]) for share in products}
            scores |= weighted("update", products, weights)
        elif for_update is not None:
            shares = {share: [n for n in names if n in step.steps] for share, names in contribution.shares.items()}
            update_products = for_update.multiply(contribution.for_update, shares, contribution.factor)
            scores |= weighted("update", update_products, dict.fromkeys(update_products, step.clip))
        return scores

    def update_side(self, step: StepTaken, sampled: Mapping[str, Tensor] | None = None) -> UpdateSide | None:
        """Prepare the query side with which all contributions of a step are multiplied for ``update``.

        Exact products have the optimizer's preconditioner on the side of the examples, whose gradients are formed in
        blocks anyway, so that the queries' dense gradients serve all steps until the next refresh. Projected ones have
        it on the side of the queries.

        Args:
            sampled: What :attr:`prepared` sampled of the gradients that the optimizer was given, by which directions of
                earlier steps may serve this one; None to prepare them for this step alone.

        Returns:
            None if ``update`` follows from the products with the plain query gradients and a factor per share, or if
            momentum is followed exactly.
        """
        if "update" not in self.rules.kinds or self.rules.exact_momentum or not step.is_elementwise:
            return None
        if step.is_exact:
            assert self.unprojected is not None
            return scaling_examples(self.unprojected, step, {n: s.eventual for n, s in step.steps.items()})
        if self.rules.projection is None:
            assert self.queries is not None
            return UpdateSide(self.queries, _eventual_scales(step, step.steps))

        def prepare(names: Collection[str]) -> PerExampleGradients:
            return self._scaled(self.unprojected, self._divided(step, _eventual_scales(step, names), step.balance))

        if sampled is None:
            directions = prepare(step.steps)
        else:
            directions = self.prepared.directions(step.steps, step.balance, sampled, prepare)
        batches = max(1, len(step.contributions))  # 0 if the step's layers ran on other processes only
        return UpdateSide(QueryGradients(directions, batches=batches))

    def by_parameter(
        self, step: StepTaken, queries: PerExampleGradients | None, balances: Collection[int]
    ) -> Directions:
        """Multiply query gradients by the step's scale; dense, by balance and parameter, ``[Q, ...]``.

        Args:
            queries: The query gradients, as :attr:`unprojected`.
            balances: The keys of the balances of the contributions that they will be multiplied with.
        """
        scales = {name: of_step.scale for name, of_step in step.steps.items()}
        directions: Directions = {}
        for balance in balances:
            scaled = self._scaled(queries, self._divided(step, scales, balance))
            directions |= {(balance, name): scaled.dense(name) for name in scaled.parts}
        return directions

    def _divided(
        self, step: StepTaken, scales: Mapping[str, float | Preconditioner], balance: int
    ) -> Mapping[str, float | Preconditioner]:
        return self.balances[step.optimizer].divide(scales, balance) if balance else scales

    def _scaled(
        self, queries: PerExampleGradients | None, scales: Mapping[str, float | Preconditioner]
    ) -> PerExampleGradients:
        assert queries is not None
        if self.rules.projection is None:
            return precondition(queries.only(scales), scales)
        if all(isinstance(scale, float) for scale in scales.values()):  # as with SGD: projection is linear
            return precondition(self._plainly_projected(queries).only(scales), scales)
        return project(precondition(queries.only(scales), scales), self.rules.projection)


def scaling_examples(queries: PerExampleGradients, step: StepTaken, factors: Mapping[str, float]) -> UpdateSide:
    """Make the query side of exact ``update`` products, which leaves the step's scale to the examples.

    Scaled element by element, the queries' gradients would be dense, for all parameters together.

    Args:
        queries: The unprojected query gradients.
        factors: By parameter, what contributions are multiplied by beside the step's scale. Others are left out.
    """
    scales = {name: times(step.steps[name].scale, factor) for name, factor in factors.items()}
    return UpdateSide(QueryGradients(queries, batches=max(1, len(step.contributions))), scales)


def _eventual_scales(step: StepTaken, names: Collection[str]) -> dict[str, float | Preconditioner]:
    """Return by parameter the step's scale times its eventual effect."""
    return {name: times(step.steps[name].scale, step.steps[name].eventual) for name in names}


def _eventual_rate(steps: Mapping[str, ParameterStep], names: Sequence[str]) -> float:
    """Return scale times eventual effect, the same for all parameters of a share; 0 if the step left them out."""
    for name in names:
        if name in steps:
            scale = steps[name].scale
            assert isinstance(scale, float)
            return scale * steps[name].eventual
    return 0.0
