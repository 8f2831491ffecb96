"""What each backward pass adds to the gradients of an optimizer's parameters, and what a step makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ftrace.gradients import (
    ParameterStep,
    PerExampleGradients,
    QueryGradients,
    cosines,
    inner_products,
    inner_products_and_square_norms,
)
from ftrace.scores import ScoreAccumulator, Sum


class Share(NamedTuple):
    """Parameters whose products may be added up before a step's rates are known.

    Args:
        group: Index of the optimizer's parameter group.
        progress: How far the optimizer has come with them: its own count of steps.
        layer: The part of the breakdown by layer; "" without.
    """

    group: int
    progress: float
    layer: str


Shares = Mapping[Share, Sequence[str]]
Products = dict[Share, Tensor]


@dataclass
class Contribution:
    """What one backward pass over a batch has added to the gradients of one optimizer's parameters.

    Args:
        example_ids: ``[B]``.
        factor: What products with ``gradients`` are multiplied with to be of the gradient that the optimizer gets,
            before clipping: one over the loss scale and the number of processes.
        shares: Names of the parameters, by share.
        products: ``<grad L_q, c_z>``, ``[B, Q]`` each, factor included; None where they were not asked for.
        norms: ``[B]``, of the whole contribution, factor included, where cosines are asked for.
        gradients: The contributions themselves, where they are multiplied again later.
        refresh: Which refresh's query gradients the products are with.
        whitened: Whitened cosines with the queries, ``[B, Q]`` each, where they are asked for.
        projected: The gradients that these are of, by parameter, until the step has been taken.
    """

    example_ids: Tensor
    factor: float
    shares: Shares
    products: Products | None = None
    norms: Tensor | None = None
    gradients: PerExampleGradients | None = None
    refresh: int = 0
    whitened: dict[Sum, Tensor] = field(default_factory=dict)
    projected: dict[str, Tensor] = field(default_factory=dict)

    def total(self, num_queries: int) -> Tensor:
        """Products over all parameters, ``[B, Q]``."""
        assert self.products is not None
        found = list(self.products.values())
        return torch.stack(found).sum(0) if found else torch.zeros(len(self.example_ids), num_queries)


@dataclass(frozen=True)
class Moment:
    """When a step was taken, as far as scores are broken down by it.

    Args:
        epoch: In which epoch; None where that makes no difference.
        learned: ``[Q]`` bool: which queries had been learned; None where that makes no difference.
    """

    epoch: int | None = None
    learned: Tensor | None = None


@dataclass
class StepTaken:
    """One step of one optimizer, and what it was made of.

    Args:
        step: Counted over all optimizers.
        optimizer: Its index.
        rates: The learning rate of each parameter group.
        clip: kappa.
        steps: By parameter, where ``update`` is asked for.
        contributions: Of the batches in the window.
        moment: When it was taken.
        names: The optimizer's covered parameters, by name.
        given: The gradient that the optimizer was given, as one example's contribution; None where nobody asks.
        left: While it waits for the next refresh: for each contribution, its scores with the last query gradients.
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
    left: list[dict[Sum, Tensor]] = field(default_factory=list)
    left_of_given: dict[Sum, Tensor] = field(default_factory=dict)

    def emptied(self) -> StepTaken:
        """Drop the contributions."""
        self.contributions, self.left = [], []
        return self

    @property
    def is_elementwise(self) -> bool:
        """Whether the step multiplies gradients with more than a number for each parameter."""
        return any(not isinstance(step.scale, float) for step in self.steps.values())


def multiply(
    gradients: PerExampleGradients, queries: QueryGradients, shares: Shares, factor: float, *, norms: bool
) -> tuple[Products, Tensor | None]:
    """Products of contributions with queries by share, ``[B, Q]`` each, and norms ``[B]`` where they are wanted."""
    if not norms:
        return {share: factor * inner_products(gradients, queries, names) for share, names in shares.items()}, None
    both = {s: inner_products_and_square_norms(gradients, queries, names) for s, names in shares.items()}
    square_norms = gradients.zeros(len(gradients)) + sum(found for _, found in both.values())
    return {s: factor * products for s, (products, _) in both.items()}, factor * square_norms.sqrt()


def of_dot(products: Products, rates: Sequence[float], clip: float) -> dict[Sum, Tensor]:
    """Learning rate times clip factor times product, over all parameters and by layer."""
    return weighted("dot", products, {share: clip * rates[share.group] for share in products})


def of_cosine(contribution: Contribution, query_norms: Tensor) -> dict[Sum, Tensor]:
    """Cosines over all parameters; by layer, each layer's share of them."""
    assert contribution.products is not None
    assert contribution.norms is not None
    found = weighted("cosine", contribution.products, dict.fromkeys(contribution.products, 1.0))
    return {
        key: cosines(products, contribution.norms, query_norms[: products.shape[1]].to(products))
        for key, products in found.items()
    }


def weighted(kind: str, products: Products, weights: Mapping[Share, float]) -> dict[Sum, Tensor]:
    """Products times a number for each share, added up as a whole and, where there are layers, by layer."""
    found: dict[Sum, Tensor] = {}
    for share, values in products.items():
        keys = [Sum(kind)] + ([Sum(kind, "layer", share.layer)] if share.layer else [])
        for key in keys:
            own = weights[share] * values
            found[key] = found[key] + own if key in found else own
    return found


def book(sums: ScoreAccumulator, example_ids: Tensor, found: Mapping[Sum, Tensor], moment: Moment) -> None:
    """Add scores to the sums, and to those of their epoch and of before or after their queries were learned.

    Queries that were added later have no columns in older scores: zeros, then.
    """
    both = {key: padded(values, len(sums.query_ids), axis=1) for key, values in found.items()}
    for key, values in list(both.items()):
        if key.axis:
            continue
        if moment.epoch is not None:
            both[Sum(key.kind, "epoch", f"{moment.epoch}")] = values
        if moment.learned is not None:
            learned = padded(moment.learned, len(sums.query_ids)).to(values.device)
            both[Sum(key.kind, "learned", "before")] = values.masked_fill(learned, 0)
            both[Sum(key.kind, "learned", "after")] = values.masked_fill(~learned, 0)
    sums.add(example_ids, both)


def padded(values: Tensor, queries: int, axis: int = 0) -> Tensor:
    """The same with zeros for queries that were added later, along the axis that is theirs."""
    missing = queries - values.shape[axis]
    if not missing:
        return values
    size = [missing if index == axis else length for index, length in enumerate(values.shape)]
    return torch.cat([values, values.new_zeros(size)], axis)


def added(first: Mapping[Sum, Tensor], second: Mapping[Sum, Tensor], share: float) -> dict[Sum, Tensor]:
    """``(1 - share) * first + share * second``, matrix by matrix, for the queries that both know."""
    return {k: (1 - share) * values + share * second[k][:, : values.shape[1]] for k, values in first.items()}


def all_finite(values: Iterable[Tensor]) -> bool:
    """Whether all numbers are."""
    return all(bool(one.isfinite().all()) for one in values)
