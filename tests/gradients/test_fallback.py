"""Layers without a rule: equal to autograd, one example at a time, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ftrace.gradients import GradientCapture
from helpers import oracle

BATCH, POSITIONS, WIDTH = 4, 3, 6


class Odd(nn.Linear):
    """A subclass with a forward of its own, which must not be taken for its parent."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class OwnParameters(nn.Module):
    """Parameters of its own, in containers too, around a layer that has a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.more = nn.ParameterDict({"shift": torch.ones(WIDTH), "mix": torch.ones(WIDTH, WIDTH)})
        self.register_buffer("offset", torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * self.scale + self.offset) @ self.more["mix"] + self.more["shift"] * x


class WithDropout(OwnParameters):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.4, self.training)


class SeveralOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor, *, factor: Tensor, power: int) -> dict[str, Any]:
        return {"first": (x * self.scale) ** power, "rest": [x.detach(), self.scale * factor.unsqueeze(1)]}


class UsesSeveralOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = SeveralOutputs()

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x, factor=x[:, 0], power=2)
        return found["first"] + found["rest"][1].sin()


class Attention(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(POSITIONS, POSITIONS, dtype=torch.bool).triu(1)
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class Parametrized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Borrows(nn.Module):
    """Its own parameter is a child's weight too, and is used through both."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(WIDTH, WIDTH)
        self.weight = self.child.weight
        self.again = nn.ParameterList([self.child.weight])

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x) + x @ self.weight.sin() + (x @ self.again[0]).tanh()


class GoesOn(nn.Module):
    """Returns what it goes on computing with, and one tensor twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> dict[str, Any]:
        first = x * self.scale
        second = first.softmax(-1) * self.scale
        return {"last": second * first, "all": (first, second, first)}


class UsesAll(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = GoesOn()

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x)
        return found["last"] + found["all"][0].cos() + found["all"][1] * found["all"][2]


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        state = (x[:, 0], x[:, 1])
        for place in range(POSITIONS):
            state = self.cell(x[:, place], state)
        return state[0] + state[1]


class InPlaceAfterwards(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.PReLU(POSITIONS)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mul_(2).exp()


class MaskedAttention(nn.Module):
    """With a mask of [T, T] where T is the number of examples too."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, x[:, :1]], 1)
        mask = torch.linspace(-1, 0, BATCH * BATCH, dtype=x.dtype).view(BATCH, BATCH)
        return self.attention(x, x, x, attn_mask=mask)[0]


class ForwardOfTheInstance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        run = self.layer.forward
        self.layer.forward = lambda x: run(x.sin()) * 2  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class RowsFlattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Odd(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).view(len(x), -1)


class MasksScores(nn.Module):
    """What it returns has infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(POSITIONS))

    def forward(self, x: Tensor) -> Tensor:
        scores = (x @ x.transpose(1, 2)).tanh() * self.scale
        return scores.masked_fill(torch.ones(POSITIONS, POSITIONS, dtype=torch.bool).triu(1), -torch.inf)


class UsesScores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = MasksScores()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).softmax(-1) @ x


class ReturnsItsParameters(nn.Module):
    """Beside something that it has computed with them: one for all examples, and one without axes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return x * self.scale.sin() + self.shift, self.scale, self.shift, self.shift.exp()


class UsesTheirParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = ReturnsItsParameters()

    def forward(self, x: Tensor) -> Tensor:
        x, scale, shift, size = self.layer(x)
        return (x.sin() * scale + shift.cos() * x) * size


LAYERS = {
    "scores with infinities": UsesScores,
    "parameters as they are": UsesTheirParameters,
    "subclass": lambda: Odd(WIDTH, 2),
    "own parameters": OwnParameters,
    "dropout": WithDropout,
    "several outputs": UsesSeveralOutputs,
    "attention": lambda: Attention(0.0),
    "attention with dropout": lambda: Attention(0.3),
    "transformer layer": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.2, batch_first=True),
    "lstm": Recurrent,
    "parametrization": Parametrized,
    "rows side by side": RowsFlattened,
    "a child's weight": Borrows,
    "outputs that feed each other": UsesAll,
    "lstm cells": Cells,
    "changed in place afterwards": InPlaceAfterwards,
    "mask like a batch": MaskedAttention,
    "forward of the instance": ForwardOfTheInstance,
    "channels": lambda: nn.Sequential(nn.PReLU(3), nn.ConvTranspose1d(3, 2, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_fallback_equals_autograd_in_train_mode(name: str) -> None:
    torch.manual_seed(0)
    module = LAYERS[name]().double().train()
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    inputs = torch.randn(BATCH, POSITIONS, WIDTH, dtype=torch.float64)
    weights = torch.randn_like(module(inputs))

    def losses() -> Tensor:
        torch.manual_seed(3)  # the same dropout in both
        return (module(inputs).sin() * weights).flatten(1).sum(1)

    with GradientCapture(module) as capture, capture.recording(BATCH) as recording:
        given = losses()
        state = torch.get_rng_state()
        recording.backward(given)
        found = recording.gradients()
    assert torch.equal(torch.get_rng_state(), state)
    assert capture.coverage.gaps == []
    assert "fallback" in {rule for line in capture.coverage.lines for rule in line.rules}
    rows = oracle.gradients(module, losses)
    for parameter in rows[0]:
        expected = torch.stack([row[parameter] for row in rows])
        torch.testing.assert_close(
            found.dense(parameter) if parameter in found.parts else 0 * expected, expected, rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("name", LAYERS)
def test_contributions_sum_to_the_gradient(name: str) -> None:
    torch.manual_seed(0)
    module = LAYERS[name]().double().train()
    inputs = torch.randn(BATCH, POSITIONS, WIDTH, dtype=torch.float64)
    with GradientCapture(module) as capture:
        with capture.recording(BATCH) as recording:
            recording.backward(module(inputs).sin().flatten(1).sum(1))
        with capture.recording(BATCH) as recording:
            loss = module(inputs).sin().mean()
            recording.prepare([loss.grad_fn])
            loss.backward()
            found = recording.gradients()
    for parameter, value in module.named_parameters():
        if value.grad is not None and value.grad.any():
            torch.testing.assert_close(found.total(parameter), value.grad, rtol=1e-9, atol=1e-12, msg=parameter)


def test_operators_that_are_looped_over_are_used_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    module = Parametrized().double()
    with GradientCapture(module) as capture, capture.recording(BATCH) as recording:
        recording.backward(module(torch.randn(BATCH, POSITIONS, WIDTH, dtype=torch.float64)).flatten(1).sum(1))
        recording.gradients()
    assert not [str(warning.message) for warning in recwarn if "performance drop" in str(warning.message)]
