"""Layers that return a parameter: its gradient is that of all of its uses, example by example."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ftrace.gradients import GradientCapture, UnreadableError
from helpers import oracle
from helpers.held_losses import hold
from helpers.rehearsal_step import random, randomised

BATCH, POSITIONS, WIDTH = 4, 3, 6


class Temperature(nn.Module):
    """Returns its parameter itself, or a number made of it."""

    def __init__(self, returns: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.returns, self.value = returns, nn.Parameter(torch.ones(shape))

    def forward(self) -> Tensor:
        return self.value if self.returns == "itself" else self.value.exp()


class Scaled(nn.Module):
    def __init__(self, returns: str, shape: tuple[int, ...], uses: int = 1) -> None:
        super().__init__()
        self.uses = uses
        self.body, self.temperature = nn.Linear(WIDTH, WIDTH), Temperature(returns, shape)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x) * self.temperature()
        if self.uses > 1:
            x = x.sin() + self.temperature()
        if self.uses > 2:  # beside its layer
            x = x / (2 + self.temperature.value.square())
        return self.head(x).sin()


@pytest.mark.parametrize("shape", [(), (1,), (WIDTH,)])
@pytest.mark.parametrize(
    ("returns", "uses"), [("itself", 1), ("itself", 2), ("itself", 3), ("made of it", 1), ("made of it", 2)]
)
def test_a_layer_that_returns_its_parameter(returns: str, uses: int, shape: tuple[int, ...]) -> None:
    module, inputs = randomised(Scaled(returns, shape, uses)), random(BATCH, POSITIONS, WIDTH)
    hold(module, lambda: module(inputs).flatten(1).sum(1))


def test_a_layer_that_returns_its_parameter_in_other_batches() -> None:
    """Hooks on the parameter itself end with their pass."""
    module = randomised(Scaled("itself", (WIDTH,)))
    capture = GradientCapture(module)
    kept = []
    for count in (4, 1, 3, 1):
        inputs = random(count, POSITIONS, WIDTH, seed=count)
        with capture, capture.recording(count) as recording:
            recording.backward(module(inputs).flatten(1).sum(1))
        kept.append((recording, inputs, recording.gradients().dense("temperature.value")))
    for recording, inputs, before in kept:
        rows = oracle.gradients(module, lambda x=inputs: module(x).flatten(1).sum(1))
        expected = torch.stack([row["temperature.value"] for row in rows])
        torch.testing.assert_close(before, expected, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(recording.gradients().dense("temperature.value"), expected, rtol=1e-9, atol=1e-10)
    del kept, recording
    assert not module.temperature.value._backward_hooks


class Turns(nn.Module):
    """Two layers that return one parameter, in this order or the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Temperature("itself", (WIDTH,)), Temperature("itself", (WIDTH,))
        self.second.value = self.first.value
        self.head, self.is_turned = nn.Linear(WIDTH, 2), False

    def forward(self, x: Tensor) -> Tensor:
        layers = [self.second, self.first] if self.is_turned else [self.first, self.second]
        for layer in layers:
            x = (x * layer()).sin()
        return self.head(x)


def test_a_parameter_that_two_layers_return() -> None:
    module, inputs = randomised(Turns()), random(BATCH, POSITIONS, WIDTH)
    capture = GradientCapture(module)
    for module.is_turned in (False, True, False):
        hold(module, lambda: module(inputs).sin().flatten(1).sum(1), BATCH, capture)


class Tied(nn.Module):
    """A layer returns the weight that another one computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.weight = nn.Linear(WIDTH, WIDTH, bias=False), Temperature("itself", (WIDTH, WIDTH))
        self.weight.value = self.body.weight

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x).tanh() @ self.weight()).sin()


def test_a_returned_weight_that_another_layer_uses_is_counted_once_or_refused() -> None:
    module, inputs = randomised(Tied()), random(BATCH, POSITIONS, WIDTH)
    with GradientCapture(module) as capture, capture.recording(BATCH) as recording:
        try:
            recording.backward(module(inputs).flatten(1).sum(1))
            found = recording.gradients()
        except UnreadableError as error:
            message = str(error)
        else:
            message = ""
    if message:
        assert 'parameters=("*", "!body.weight")' in message
        return
    rows = oracle.gradients(module, lambda: module(inputs).flatten(1).sum(1))
    expected = torch.stack([row["body.weight"] for row in rows])
    torch.testing.assert_close(found.dense("body.weight"), expected, rtol=1e-9, atol=1e-10)
