"""Directions that serve several steps are prepared anew where the step would differ by more than is tolerated."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch
from torch import Tensor

from ftrace.gradients import Dense, Elementwise, ParameterStep, PerExampleGradients, RankOne, precondition
from ftrace.online.scoring.contributions import Contribution
from ftrace.online.scoring.prepared_directions import PreparedDirections, sampled

SHAPE = torch.Size([40, 30])


class Steps:
    """Directions of one matrix, "projected" by the identity, and how often they were prepared."""

    def __init__(self, tolerance: float) -> None:
        generator = torch.Generator().manual_seed(0)
        self.gradient = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
        self.queries = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)
        self.scale = torch.rand(SHAPE, generator=generator, dtype=torch.float64) + 0.5
        self.noise = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
        self.prepared = PreparedDirections(tolerance, seed=0)

    def take(self, scale: Tensor, gradient: Tensor | None = None, balance: int = 1) -> Tensor:
        gradient = self.gradient if gradient is None else gradient
        given = Contribution(
            torch.zeros(1), 1.0, {},
            unprojected=PerExampleGradients({"w": [Dense(gradient[None])]}, {"w": SHAPE}, 1),
        )  # fmt: skip

        def prepare(names: Collection[str]) -> PerExampleGradients:
            queries = PerExampleGradients({name: [Dense(self.queries)] for name in names}, {"w": SHAPE}, 3)
            return precondition(queries, {name: Elementwise(scale) for name in names})

        sampled = self.prepared.sample_given(given)
        steps = {"w": ParameterStep(Elementwise(scale), 1.0)}
        return self.prepared.directions(steps, balance, sampled, prepare).dense("w")


def test_what_changes_all_elements_alike_is_followed_exactly() -> None:
    steps = Steps(0.01)
    for rate in (1.0, 0.5, 1e-4):
        torch.testing.assert_close(steps.take(rate * steps.scale), rate * steps.scale * steps.queries)
    assert steps.prepared.prepared == 1


@pytest.mark.parametrize(("change", "expected"), [(0.05, 1), (0.2, 2)])
def test_scales_that_move_by_more_than_the_tolerance_are_taken_anew(change: float, expected: int) -> None:
    steps = Steps(0.1)
    steps.take(steps.scale)
    moved = steps.scale * (1 + change * steps.noise)
    found = steps.take(moved)
    assert steps.prepared.prepared == expected
    if expected == 2:
        torch.testing.assert_close(found, moved * steps.queries)


def test_where_the_step_has_no_gradient_scales_may_move() -> None:
    steps = Steps(0.1)
    steps.take(steps.scale)
    gradient = steps.gradient.clone()
    gradient[:20] = 0
    moved = steps.scale.clone()
    moved[:20] *= 100
    steps.take(moved, gradient)
    assert steps.prepared.prepared == 1


def test_elements_whose_first_gradient_this_is_are_taken_anew() -> None:
    steps = Steps(0.1)
    untouched = steps.scale.clone()
    untouched[:20] = 0
    gradient = steps.gradient.clone()
    gradient[:20] = 0
    steps.take(untouched, gradient)
    torch.testing.assert_close(steps.take(steps.scale), steps.scale * steps.queries)
    assert steps.prepared.prepared == 2


def test_too_few_gradients_say_too_little() -> None:
    steps = Steps(0.1)
    gradient = torch.zeros_like(steps.gradient)
    gradient[0, 0] = 1.0
    for _ in range(2):
        steps.take(steps.scale, gradient)
    assert steps.prepared.prepared == 2


def test_another_balance_or_new_queries_need_new_directions() -> None:
    steps = Steps(0.1)
    steps.take(steps.scale)
    steps.take(steps.scale, balance=2)
    steps.prepared.forget()
    steps.take(steps.scale, balance=2)
    assert steps.prepared.prepared == 3


def test_without_tolerance_each_step_has_its_own_directions() -> None:
    steps = Steps(0.0)
    for _ in range(3):
        steps.take(steps.scale)
    assert (steps.prepared.prepared, steps.prepared.used) == (3, 3)


def test_scales_of_rank_one_are_sampled_like_their_product() -> None:
    rows, columns = torch.rand(5), torch.rand(7)
    indices = torch.tensor([0, 6, 7, 34])
    expected = torch.outer(rows, columns).flatten()[indices]
    torch.testing.assert_close(sampled(RankOne(rows, columns), indices, torch.zeros(4)), expected)
