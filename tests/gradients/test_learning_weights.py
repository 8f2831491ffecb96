"""How much a step matters to a query, by its loss."""

from __future__ import annotations

import math

import pytest
import torch

from ftrace.gradients import learning_weights

LOSSES = torch.tensor([0.0, 0.01, math.log(2), 3.0, 60.0], dtype=torch.float64)


def test_it_is_the_standard_deviation_of_a_draw_that_is_right_with_the_answers_probability() -> None:
    expected = [math.sqrt(math.exp(-loss) * (1 - math.exp(-loss))) for loss in LOSSES.tolist()]
    torch.testing.assert_close(
        learning_weights(LOSSES), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-15
    )
    assert learning_weights(LOSSES).argmax() == 2  # half known


def test_it_is_the_speed_of_the_arcsine() -> None:
    """The derivative of 2 arcsin(sqrt(p)) with respect to the logit of p, by central differences."""
    logits = torch.linspace(-5, 5, 11, dtype=torch.float64)

    def angle(logits: torch.Tensor) -> torch.Tensor:
        return 2 * logits.sigmoid().sqrt().arcsin()

    found = learning_weights(-logits.sigmoid().log())
    torch.testing.assert_close(found, (angle(logits + 1e-5) - angle(logits - 1e-5)) / 2e-5, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("length", [1, 3, 4])
def test_answers_of_four_tokens_at_most_count_as_a_whole(length: int) -> None:
    lengths = torch.full((5,), length)
    torch.testing.assert_close(learning_weights(LOSSES, lengths), learning_weights(LOSSES))


def test_longer_answers_count_by_four_of_their_tokens() -> None:
    lengths = torch.tensor([5, 8, 100, 1000, 40])
    torch.testing.assert_close(
        learning_weights(LOSSES * lengths, lengths), learning_weights(4 * LOSSES), rtol=1e-12, atol=0
    )
    assert learning_weights(torch.tensor([900.0]), torch.tensor([900])) > 0.1


def test_rounding_below_zero_is_zero() -> None:
    assert learning_weights(torch.tensor([-1e-7])).tolist() == [0.0]
