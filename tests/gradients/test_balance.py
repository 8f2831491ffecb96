"""Balanced projections: right in expectation, and quieter."""

from __future__ import annotations

import torch
from torch import Tensor

from ftrace.gradients import (
    Elementwise,
    PerExampleGradients,
    Preconditioner,
    Projection,
    RankOne,
    balancing,
    divided,
    precondition,
    project,
    rank_one,
)
from ftrace.gradients.parts import Dense

SEEDS = 400


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(value: Tensor) -> PerExampleGradients:
    return PerExampleGradients({"w": [Dense(value[None])]}, {"w": value.shape}, 1)


def estimates(scale: Elementwise, query: Tensor, example: Tensor, balance: Preconditioner | None) -> Tensor:
    """The projected product ``<P G, c>``, seed by seed."""
    products = []
    for seed in range(SEEDS):
        plain = Projection(3, seed)
        of_examples = plain if balance is None else plain.preconditioned({"w": balance})
        factor: Preconditioner = scale if balance is None else divided(scale, balance)
        towards = project(precondition(gradients(query), {"w": factor}), plain).dense("w")
        products.append((towards * project(gradients(example), of_examples).dense("w")).sum())
    return torch.stack(products)


def test_a_balanced_product_is_right_in_expectation_and_quieter() -> None:
    """Second moments of rows span four orders of magnitude, as those of rare and frequent words do."""
    sizes = torch.logspace(0, -4, 12, dtype=torch.float64)[:, None]
    query, example = drawn(12, 9, seed=0), sizes * drawn(12, 9, seed=1)
    scale = Elementwise(1 / (sizes * (0.5 + drawn(12, 9, seed=2).abs())))
    exact = (scale.scale * query * example).sum()
    plain = estimates(scale, query, example, None)
    balanced = estimates(scale, query, example, balancing(rank_one(scale)[0]))
    for products in (plain, balanced):
        assert abs(products.mean() - exact) < 4 * products.std() / SEEDS**0.5
    assert balanced.std() < plain.std() / 5


def test_any_balance_is_right_in_expectation() -> None:
    query, example, scale = drawn(12, 9, seed=0), drawn(12, 9, seed=1), Elementwise(drawn(12, 9, seed=2).abs())
    balance = RankOne(drawn(12, seed=3).abs() + 0.1, drawn(9, seed=4).abs() + 0.1)
    products = estimates(scale, query, example, balance)
    assert abs(products.mean() - (scale.scale * query * example).sum()) < 4 * products.std() / SEEDS**0.5


def test_a_vector_is_balanced_element_by_element() -> None:
    query, example, scale = drawn(40, seed=0), drawn(40, seed=1), Elementwise(drawn(40, seed=2).abs())
    products = estimates(scale, query, example, balancing(scale))
    assert abs(products.mean() - (scale.scale * query * example).sum()) < 4 * products.std() / SEEDS**0.5


def test_a_balance_is_positive_where_no_gradient_has_arrived() -> None:
    balance = balancing(RankOne(torch.tensor([4.0, 0.0, 16.0]), torch.tensor([0.0, 0.0])))
    assert isinstance(balance, RankOne)
    assert balance.rows.tolist() == [2.0, 2.0, 4.0]
    assert balance.columns.tolist() == [1.0, 1.0]
    assert balancing(Elementwise(torch.tensor([float("inf"), 9.0, float("nan")]))).dense().tolist() == [3.0, 3.0, 3.0]


def test_what_is_of_rank_one_stays_so() -> None:
    scale = RankOne(torch.tensor([4.0, 1.0]), torch.tensor([9.0, 1.0, 4.0]))
    ratio = divided(scale, balancing(scale))
    assert isinstance(ratio, RankOne)
    torch.testing.assert_close(ratio.dense() ** 2, scale.dense())
