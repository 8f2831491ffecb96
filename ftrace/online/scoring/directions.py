"""What contributions are multiplied with: the current query gradients, as each kind of score needs them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

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
from ftrace.online.scoring.contributions import Contribution, StepTaken, multiply, of_cosine, of_dot, weighted
from ftrace.online.scoring.rules import ScoringRules
from ftrace.scores import Sum


class QueryDirections:
    """The query gradients of the last refresh.

    Args:
        rules: How scores are made.
        batches: About how many batches are multiplied with the same query gradients.
        keeps_whole: Whether query gradients are preconditioned before they are projected, so that they come whole.

    Attributes:
        queries: As contributions are multiplied with them; None before the first refresh.
        whole: As they came, before projection.
    """

    def __init__(self, rules: ScoringRules, batches: float, *, keeps_whole: bool) -> None:
        self.rules = rules
        self.batches = batches
        self.keeps_whole = keeps_whole
        self.queries: QueryGradients | None = None
        self.whole: PerExampleGradients | None = None
        self._norms = torch.empty(0)

    def refresh(self, gradients: PerExampleGradients, *, keeps_last: bool) -> QueryGradients | None:
        """Take new query gradients.

        Args:
            gradients: Of all queries.
            keeps_last: Whether the previous ones are still needed, so that their memory must not be reused.

        Returns:
            The previous ones; the same object as the new ones if their memory was reused.
        """
        projected = self._take(gradients)
        previous = self.queries
        if previous is None or len(previous) != len(projected) or keeps_last:
            self.queries = QueryGradients(projected, batches=self.batches)
        else:
            previous.replace(projected)
        return previous

    def restore(self, gradients: PerExampleGradients) -> QueryGradients:
        """Take the query gradients of a run that is resumed."""
        self.queries = QueryGradients(self._take(gradients), batches=self.batches)
        return self.queries

    def _take(self, gradients: PerExampleGradients) -> PerExampleGradients:
        self.whole = gradients
        if not self.keeps_whole:
            return gradients
        assert self.rules.projection is not None
        return project(gradients, self.rules.projection)

    def see(self, names: Collection[str]) -> None:
        """Note that these parameters are covered from here on."""
        if self.queries is not None and "cosine" in self.rules.kinds:
            self._norms = self.queries.norms(names)

    def scores(
        self,
        step: StepTaken,
        contribution: Contribution,
        of_update: QueryGradients | None,
        *,
        of_the_step: bool = False,
        again: bool = False,
    ) -> dict[Sum, Tensor]:
        """Compute the scores of one contribution with the current query gradients, ``[B, Q]`` each.

        Args:
            step: The step that it was part of.
            contribution: The contribution.
            of_update: As :meth:`of_update` returns them.
            of_the_step: Whether the kinds that are not interpolated are wanted, too.
            again: Whether its products are with other query gradients.
        """
        kinds = self.rules.kinds
        products = contribution.products
        scalar_update = "update" in kinds and of_update is None and not self.rules.exact_momentum
        if again and (scalar_update or "dot" in kinds):
            assert contribution.gradients is not None
            assert self.queries is not None
            products, _ = multiply(
                contribution.gradients, self.queries, contribution.shares, contribution.factor, norms=False
            )
        scores: dict[Sum, Tensor] = {}
        if "dot" in kinds:
            assert products is not None
            scores |= of_dot(products, step.rates, step.clip)
        if "cosine" in kinds and of_the_step:
            scores |= of_cosine(contribution, self._norms)
        if of_the_step:
            scores |= contribution.whitened
        if scalar_update:
            assert products is not None
            weights = {share: step.clip * _eventual_rate(step.steps, contribution.shares[share]) for share in products}
            scores |= weighted("update", products, weights)
        elif of_update is not None:
            assert contribution.gradients is not None
            shares = {s: [n for n in names if n in step.steps] for s, names in contribution.shares.items()}
            products_of_update, _ = multiply(
                contribution.gradients, of_update, shares, contribution.factor, norms=False
            )
            scores |= weighted("update", products_of_update, dict.fromkeys(products_of_update, step.clip))
        return scores

    def of_update(self, step: StepTaken) -> QueryGradients | None:
        """Make what all contributions of a step are multiplied with for ``update``, once for all of them.

        Returns:
            None where their products with the queries, times numbers, are enough, or momentum is followed exactly.
        """
        if "update" not in self.rules.kinds or self.rules.exact_momentum or not step.is_elementwise:
            return None
        scales = {name: times(of_step.scale, of_step.eventual) for name, of_step in step.steps.items()}
        batches = max(1, len(step.contributions))  # none where the step's layers ran on other processes only
        return QueryGradients(self._scaled(self.whole, scales), batches=batches)

    def by_parameter(self, step: StepTaken, queries: PerExampleGradients | None) -> dict[str, Tensor]:
        """Multiply query gradients by the step's scale: dense, by parameter, ``[Q, ...]``."""
        scaled = self._scaled(queries, {name: of_step.scale for name, of_step in step.steps.items()})
        return {name: scaled.dense(name) for name in scaled.parts}

    def _scaled(
        self, queries: PerExampleGradients | None, scales: Mapping[str, float | Preconditioner]
    ) -> PerExampleGradients:
        assert queries is not None
        scaled = precondition(queries.only(scales), scales)
        return scaled if self.rules.projection is None else project(scaled, self.rules.projection)


def _eventual_rate(steps: Mapping[str, ParameterStep], names: Sequence[str]) -> float:
    """Scale times eventual effect, which parameters of one share have in common; 0 where the step left them out."""
    for name in names:
        if name in steps:
            scale = steps[name].scale
            assert isinstance(scale, float)
            return scale * steps[name].eventual
    return 0.0
