"""What an optimizer did is what ParameterStep says it did: against the true change of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from ftrace.gradients import after_step, before_step, buffer_of, unsupported_step

MAKE: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2),
    "sgd climbing": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, weight_decay=0.2, maximize=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.4, weight_decay=0.2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.2),
    "adam climbing": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.2, maximize=True),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "no momentum": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.9)),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2),
    "adamw climbing": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2, maximize=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.2),
    "transformers adafactor": lambda p: transformers.Adafactor(
        p, lr=0.1, relative_step=False, scale_parameter=False, weight_decay=0.2
    ),
    "relative adafactor": lambda p: transformers.Adafactor(p, warmup_init=True),
}


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    shapes = {"matrix": (4, 3), "vector": (5,), "kernel": (3, 2, 2)}
    return {name: nn.Parameter(torch.randn(shape, dtype=torch.float64)) for name, shape in shapes.items()}


@pytest.mark.parametrize("optimizer", MAKE)
def test_steps_are_linear_in_gradients_and_decay(optimizer: str) -> None:
    """Its own buffers are rebuilt from gradients and decay; each change is scale times what they say, plus decay."""
    named = parameters()
    made = MAKE[optimizer](list(named.values()))
    group = made.param_groups[0]
    buffers: dict[str, Tensor] = {}
    for step in range(6):
        notes, before = {}, {}
        for name, parameter in named.items():
            # A parameter without a gradient is left out, and its own count of steps stands still.
            parameter.grad = None if step == 2 and name == "vector" else torch.randn_like(parameter)
            notes[name], before[name] = before_step(made, group, parameter), parameter.detach().clone()
        made.step()
        for name, parameter in named.items():
            if parameter.grad is None:
                assert torch.equal(parameter, before[name])
                continue
            found = after_step(made, group, name, parameter, parameter.grad, notes[name])
            given = parameter.grad + found.added_decay * before[name]
            buffer = found.gain * given + found.decay * buffers.get(name, torch.zeros_like(given))
            buffers[name] = buffer
            change = found.scaled(found.direct * given + found.from_buffer * buffer)
            change = change + found.decoupled_decay * before[name]
            torch.testing.assert_close(before[name] - parameter.detach(), change, rtol=1e-8, atol=1e-10)
            held = buffer_of(made.state[parameter])
            if held is not None and found.from_buffer:
                torch.testing.assert_close(held * (1 if found.rate > 0 else -1), buffer, rtol=1e-9, atol=1e-12)


def test_the_eventual_effect_is_the_sum_of_all_later_ones() -> None:
    """Adam, whose correction of the bias makes early steps count for more: the reference has 3.01, 1.56 and 1.25."""
    named = parameters()
    made = torch.optim.Adam(named.values(), lr=1.0, eps=0.0, betas=(0.9, 0.5))
    found = []
    for _ in range(50):
        for parameter in named.values():
            parameter.grad = torch.ones_like(parameter)
        notes = before_step(made, made.param_groups[0], named["matrix"])
        made.step()
        step = after_step(made, made.param_groups[0], "matrix", named["matrix"], None, notes)
        found.append(float(step.eventual * step.scaled(torch.ones(1, 1, dtype=torch.float64).expand(4, 3))[0, 0]))
    assert [round(found[step - 1], 2) for step in (1, 5, 10, 50)] == [3.01, 1.56, 1.25, 1.0]


def test_unknown_optimizers_are_named() -> None:
    parameter = nn.Parameter(torch.zeros(2, 2))
    assert unsupported_step(torch.optim.Adam([parameter])) is None
    assert "found torch.optim.rmsprop.RMSprop" in str(unsupported_step(torch.optim.RMSprop([parameter])))
    averaging = transformers.Adafactor([parameter], beta1=0.9)
    assert "beta1 averages steps" in str(unsupported_step(averaging))
    with pytest.raises(ValueError, match=r"not known: expected one of .*, found torch.optim.rmsprop.RMSprop"):
        after_step(
            torch.optim.RMSprop([parameter]), {}, "w", parameter, None, before_step(averaging, {"lr": 1}, parameter)
        )
