"""When queries are differentiated anew."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ftrace.online.refresh_schedule import RefreshSchedule


def refreshes(schedule: RefreshSchedule, losses: Callable[[int], Tensor], steps: int, rows: int = 8) -> list[int]:
    """The steps of all refreshes of a training whose queries have these losses before each step."""
    found = [0]
    schedule.refreshed(0, losses(0), rows, 0)
    for step in range(1, steps):
        if step - found[-1] >= schedule.interval:
            found.append(step)
            schedule.refreshed(step, losses(step), rows, step)
    return found


def falling(speed: float, queries: int = 4) -> Callable[[int], Tensor]:
    return lambda step: torch.full((queries,), 1000.0 - speed * step)


def test_a_number_is_the_interval() -> None:
    assert refreshes(RefreshSchedule(3), falling(9.0), 10) == [0, 3, 6, 9]


def test_intervals_last_until_losses_have_moved_by_a_quarter_of_a_nat() -> None:
    found = refreshes(RefreshSchedule("auto", share=10.0, planned=60), falling(0.05), 60)
    assert found == [0, 1, 2, 4, 8, 13, 18, 23, 28, 33, 38, 43, 48, 53, 58]
    assert refreshes(RefreshSchedule("auto", share=10.0, planned=9), falling(2.0), 9) == list(range(9))


def test_intervals_at_most_double_and_end_at_32_steps() -> None:
    found = refreshes(RefreshSchedule("auto", share=10.0, planned=200), falling(0.0), 200)
    assert found == [0, 1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192]


def test_they_get_short_again_as_soon_as_losses_move() -> None:
    """As after a warm-up, or where the next epoch begins."""

    def losses(step: int) -> Tensor:
        return torch.full((4,), 10.0 - max(0, step - 20) / 2)

    found = refreshes(RefreshSchedule("auto", share=10.0, planned=60), losses, 60)
    assert found[:6] == [0, 1, 2, 4, 8, 16]
    assert found[7:] == list(range(found[7], 60))  # half a nat a step
    assert found[7] <= 33


def test_a_few_queries_that_move_count_as_their_root_mean_square() -> None:
    def losses(step: int) -> Tensor:
        return torch.cat([torch.tensor([100.0 - 0.5 * step]), torch.zeros(99)])  # .05 a step, all together

    assert refreshes(RefreshSchedule("auto", share=100.0, planned=30), losses, 30)[-3:] == [18, 23, 28]


@given(
    share=st.floats(0.05, 2),
    planned=st.integers(20, 300),
    queries=st.integers(1, 200),
    rows=st.integers(1, 64),
    is_known=st.booleans(),
    seed=st.integers(0, 100),
)
def test_refreshes_cost_their_share_at_most(
    share: float, planned: int, queries: int, rows: int, is_known: bool, seed: int
) -> None:
    """Of the work of training, but for the first one; and eight come in any case."""
    speeds = torch.rand(planned, generator=torch.Generator().manual_seed(seed))

    def losses(step: int) -> Tensor:
        return torch.full((queries,), 500.0 - float(speeds[:step].sum()))

    schedule = RefreshSchedule("auto", share, planned if is_known else math.inf)
    found = refreshes(schedule, losses, planned, rows)
    work = (len(found) - 1) * queries * 2 / 3
    affordable = share * rows * (planned if is_known else max(100, planned)) * (1 + 1e-9)
    assert work <= affordable or len(found) <= 9


@pytest.mark.parametrize("planned", [250, math.inf])
def test_many_queries_are_refreshed_eight_times_all_the_same(planned: float) -> None:
    """A thousand queries beside batches of four rows: each pass costs as much as 167 steps."""
    found = refreshes(RefreshSchedule("auto", planned=planned), falling(1.0, queries=1000), 250, rows=4)
    assert found[:3] == [0, 1, 2]
    assert 8 <= len(found) <= 10


def test_batches_of_any_size_are_counted_as_they_come() -> None:
    schedule = RefreshSchedule("auto", planned=200)
    found = [0]
    schedule.refreshed(0, torch.zeros(40), 100, 0)  # the first batch is large, all others have one row
    for step in range(1, 200):
        if step - found[-1] >= schedule.interval:
            found.append(step)
            schedule.refreshed(step, torch.full((40,), float(-step)), 1, step)
    assert len(found) <= 16  # not one a step


def test_refreshes_that_fail_count_and_get_rarer() -> None:
    schedule = RefreshSchedule("auto", share=10.0, planned=100)
    schedule.refreshed(0, torch.zeros(4), 8, 0)
    failed = [1]
    schedule.failed(1, 8, 1)
    for step in range(2, 100):
        if step - failed[-1] >= schedule.interval:
            failed.append(step)
            schedule.failed(step, 8, step)
    assert failed == [1, 3, 7, 15, 31, 63, 95]


def test_a_query_that_was_added_has_not_moved() -> None:
    schedule = RefreshSchedule("auto", share=10.0, planned=100)
    for step, losses in enumerate(([1.0], [1.0], [1.0, 7.0])):
        schedule.refreshed(step, torch.tensor(losses), 8, step)
    assert schedule.interval == 2


def test_it_goes_on_where_it_was_saved() -> None:
    whole, first, second = (RefreshSchedule("auto", 0.7, 80) for _ in range(3))
    expected = refreshes(whole, falling(0.11), 80)
    half = refreshes(first, falling(0.11), 40)
    second.load(first.state())
    for step in range(40, 80):
        if step - half[-1] >= second.interval:
            half.append(step)
            second.refreshed(step, falling(0.11)(step), 8, step)
    assert half == expected


@pytest.mark.parametrize("batches_per_step", [1, 4])
def test_the_rows_of_a_step_are_those_of_all_its_batches(batches_per_step: int) -> None:
    schedule = RefreshSchedule("auto", 0.5, 100, batches_per_step)
    found = refreshes(schedule, falling(5.0, queries=32), 100, rows=8)
    affordable = 0.5 * 100 / (2 / 3 * 32 / (8 * batches_per_step))
    assert 0.9 * affordable <= len(found) <= affordable + 1
