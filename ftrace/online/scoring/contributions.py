"""Contributions of examples to an optimizer's gradients, their products with queries, and the steps that use them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ftrace.gradients import (
    Dense,
    ParameterStep,
    PerExampleGradients,
    QueryGradients,
    cosines,
    inner_products,
    inner_products_and_square_norms,
)
from ftrace.online.scoring.accumulator import ScoreAccumulator
from ftrace.scores import Sum


class Share(NamedTuple):
    """A group of parameters whose products may be summed before a step's rates are known.

    Args:
        group: The index of the optimizer's parameter group.
        progress: The optimizer's own count of steps for these parameters.
        layer: The layer, if scores are broken down by layer; otherwise "".
    """

    group: int
    progress: float
    layer: str


Shares = Mapping[Share, Sequence[str]]
Products = dict[Share, Tensor]


@dataclass
class Contribution:
    """The examples' contributions of one backward pass to the gradients of one optimizer's parameters.

    Args:
        example_ids: ``[B]``.
        factor: One over the loss scale and the number of processes. ``gradients`` times this factor are contributions
            to the gradient that the optimizer gets, before clipping.
        shares: Names of the parameters, by share.
        products: By share, ``<grad L_q, c_z>``, ``[B, Q]``, factor included; None if no score needs them.
        norms: The norms of the contributions over all parameters, ``[B]``, factor included; None without cosines.
        gradients: The contributions themselves, without factor; None if they aren't multiplied again.
        balanced: The same, projected with a balance, as the kind ``update`` needs them; None without balances.
        balance: The key of that balance.
        unprojected: The same, unprojected, as long as there is no balance.
        refresh: The index of the refresh whose query gradients the products are with.
        whitened: Whitened cosines with the queries, ``[B, Q]`` each; empty if they aren't asked for.
        projected: The gradients of which these cosines are, by parameter; kept until the step has been taken.
    """

    example_ids: Tensor
    factor: float
    shares: Shares
    products: Products | None = None
    norms: Tensor | None = None
    gradients: PerExampleGradients | None = None
    balanced: PerExampleGradients | None = None
    balance: int = 0
    unprojected: PerExampleGradients | None = None
    refresh: int = 0
    whitened: dict[Sum, Tensor] = field(default_factory=dict)
    projected: dict[str, Tensor] = field(default_factory=dict)

    @property
    def for_update(self) -> PerExampleGradients:
        """The contributions as they are multiplied for the kind ``update``."""
        forms = (self.balanced, self.unprojected, self.gradients)
        return next(gradients for gradients in forms if gradients is not None)

    def total(self, num_queries: int) -> Tensor:
        """Sum the products over all parameters, ``[B, Q]``."""
        assert self.products is not None
        products = list(self.products.values())
        return torch.stack(products).sum(0) if products else torch.zeros(len(self.example_ids), num_queries)


@dataclass(frozen=True)
class Moment:
    """The time of a step, as far as scores are broken down by it.

    Args:
        epoch: The epoch; None if scores aren't broken down by epoch.
        learned: ``[Q]`` bool, which queries had been learned; None if scores aren't broken down by that.
    """

    epoch: int | None = None
    learned: Tensor | None = None


@dataclass
class StepTaken:
    """One step of one optimizer, and the contributions that it used.

    Args:
        step: The index of the step, counted over all optimizers.
        optimizer: The index of the optimizer.
        rates: The learning rate of each parameter group.
        clip: The clip factor kappa.
        steps: By parameter, what the step did with it; empty without the kind ``update``.
        contributions: All contributions to the gradients that the step used.
        moment: The time of the step.
        names: Names of the optimizer's covered parameters.
        given: The gradient that the optimizer was given, as one example's contribution; None if it isn't needed.
        balance: The key of the balance with which its contributions are projected; 0 without balances.
        is_exact: Whether its contributions are multiplied unprojected for the kind ``update``.
        left: While the step waits for the next refresh: by contribution, its scores with the previous query gradients,
            those at the left end of the interval.
        left_of_given: The same of ``given``.
    """

    step: int
    optimizer: int
    rates: Sequence[float]
    clip: float
    steps: dict[str, ParameterStep]
    contributions: list[Contribution]
    moment: Moment
    names: tuple[str, ...] = ()
    given: Contribution | None = None
    balance: int = 0
    is_exact: bool = False
    left: list[dict[Sum, Tensor]] = field(default_factory=list)
    left_of_given: dict[Sum, Tensor] = field(default_factory=dict)

    def emptied(self) -> StepTaken:
        """Drop the contributions."""
        self.contributions, self.left = [], []
        return self

    @property
    def is_elementwise(self) -> bool:
        """Whether the step scales the elements of a parameter's gradient differently."""
        return any(not isinstance(step.scale, float) for step in self.steps.values())


def multiply(
    gradients: PerExampleGradients,
    queries: QueryGradients,
    shares: Shares,
    factor: float,
    *,
    norms: bool,
    early: Mapping[Share, Tensor] | None = None,
    early_square_norms: Tensor | float = 0.0,
) -> tuple[Products, Tensor | None]:
    """Compute products of contributions with queries by share, ``[B, Q]`` each, and norms ``[B]`` if asked for.

    Args:
        gradients: The contributions, without factor.
        shares: Names of the parameters, by share.
        factor: As in :class:`Contribution`.
        norms: Whether to compute the contributions' norms, too.
        early: Products of further parameters, which were taken before, without factor.
        early_square_norms: Square norms of the gradients of these, ``[B]``.
    """
    early = {} if early is None else early

    def with_early(share: Share, products: Tensor) -> Tensor:
        return factor * (products + early[share] if share in early else products)

    if not norms:
        products = {share: inner_products(gradients, queries, names) for share, names in shares.items()}
        return {share: with_early(share, of_share) for share, of_share in products.items()}, None
    both = {share: inner_products_and_square_norms(gradients, queries, names) for share, names in shares.items()}
    square_norms = gradients.zeros(len(gradients)) + early_square_norms + sum(squares for _, squares in both.values())
    return {share: with_early(share, products) for share, (products, _) in both.items()}, factor * square_norms.sqrt()


def dot_scores(products: Products, rates: Sequence[float], clip: float) -> dict[Sum, Tensor]:
    """Compute learning rate times clip factor times product, over all parameters and by layer."""
    return weighted("dot", products, {share: clip * rates[share.group] for share in products})


def cosine_scores(contribution: Contribution, query_norms: Tensor) -> dict[Sum, Tensor]:
    """Compute cosines over all parameters; by layer, each layer's part of these."""
    assert contribution.products is not None
    assert contribution.norms is not None
    sums = weighted("cosine", contribution.products, dict.fromkeys(contribution.products, 1.0))
    return {
        key: cosines(products, contribution.norms, query_norms[: products.shape[1]].to(products))
        for key, products in sums.items()
    }


def weighted(kind: str, products: Products, weights: Mapping[Share, float]) -> dict[Sum, Tensor]:
    """Sum products, each times its share's weight, over all parameters and, if shares have layers, by layer.

    Args:
        kind: The kind of score.
        products: By share, ``[B, Q]``.
        weights: By share, the factor of its products.
    """
    sums: dict[Sum, Tensor] = {}
    for share, values in products.items():
        keys = [Sum(kind)] + ([Sum(kind, "layer", share.layer)] if share.layer else [])
        for key in keys:
            term = weights[share] * values
            sums[key] = sums[key] + term if key in sums else term
    return sums


def book_scores(sums: ScoreAccumulator, example_ids: Tensor, scores: Mapping[Sum, Tensor], moment: Moment) -> None:
    """Add scores to the sums: to the totals, and to the parts by epoch and by whether queries had been learned.

    Scores that were computed before queries were added have no columns for these, which then get zeros.

    Args:
        sums: Where the scores are added up.
        example_ids: ``[B]``.
        scores: The examples' scores, ``[B, Q]`` each.
        moment: The time of their step.
    """
    all_scores = {key: padded(values, len(sums.query_ids), axis=1) for key, values in scores.items()}
    for key, values in list(all_scores.items()):
        if key.axis:
            continue
        if moment.epoch is not None:
            all_scores[Sum(key.kind, "epoch", f"{moment.epoch}")] = values
        if moment.learned is not None:
            learned = padded(moment.learned, len(sums.query_ids)).to(values.device)
            all_scores[Sum(key.kind, "learned", "before")] = values.masked_fill(learned, 0)
            all_scores[Sum(key.kind, "learned", "after")] = values.masked_fill(~learned, 0)
    sums.add(example_ids, all_scores)


def padded(values: Tensor, queries: int, axis: int = 0) -> Tensor:
    """Append zeros for queries that were added later.

    Args:
        values: One or more values by query.
        queries: The current number of queries.
        axis: The axis of the queries.
    """
    missing = queries - values.shape[axis]
    if not missing:
        return values
    size = [missing if index == axis else length for index, length in enumerate(values.shape)]
    return torch.cat([values, values.new_zeros(size)], axis)


def interpolated(first: Mapping[Sum, Tensor], second: Mapping[Sum, Tensor], weight: float) -> dict[Sum, Tensor]:
    """Compute ``(1 - weight) * first + weight * second`` for each matrix, for the queries that both have."""
    return {key: (1 - weight) * values + weight * second[key][:, : values.shape[1]] for key, values in first.items()}


def copied(gradients: PerExampleGradients | None) -> PerExampleGradients | None:
    """Copy dense gradients."""
    if gradients is None:
        return None
    parts: Mapping[str, Any] = {name: [Dense(gradients.dense(name).clone())] for name in gradients.parts}
    return PerExampleGradients(parts, gradients.shapes, len(gradients))


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all elements of all tensors are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
