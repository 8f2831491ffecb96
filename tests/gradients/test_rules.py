"""Each rule alone against plain autograd, one example at a time, in float64."""

from __future__ import annotations

import oracle
import pytest
import torch
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.pytorch_utils import Conv1D

from ftrace.gradients import GradientCapture

BATCH = 4


def _layer(name: str) -> nn.Module:
    return {
        "linear": lambda: nn.Linear(5, 3),
        "linear without bias": lambda: nn.Linear(5, 3, bias=False),
        "conv1d": lambda: Conv1D(3, 5),
        "layer norm": lambda: nn.LayerNorm(5),
        "layer norm without bias": lambda: nn.LayerNorm(5, bias=False),
        "rms norm": lambda: nn.RMSNorm(5, eps=1e-5),
        "t5 norm": lambda: T5LayerNorm(5),
    }[name]()


def _randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter, dtype=torch.float64)
    return module


def _check(module: nn.Module, inputs: Tensor) -> None:
    torch.manual_seed(1)
    weights = torch.randn_like(module(inputs))

    def losses() -> Tensor:
        return (module(inputs).sin() * weights).flatten(1).sum(1)

    with GradientCapture(module) as capture, capture.recording(len(inputs)) as recording:
        recording.backward(losses())
    found = recording.gradients()
    expected = oracle.gradients(module, losses)
    for name in expected[0]:
        torch.testing.assert_close(
            found.dense(name), torch.stack([row[name] for row in expected]), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("places", [(), (1,), (7,), (2, 3)], ids=str)
@pytest.mark.parametrize(
    "name",
    ["linear", "linear without bias", "conv1d", "layer norm", "layer norm without bias", "rms norm", "t5 norm"],
)
def test_rule_equals_autograd(name: str, places: tuple[int, ...]) -> None:
    inputs = torch.randn(BATCH, *places, 5, dtype=torch.float64)
    _check(_randomised(_layer(name)), inputs)


@pytest.mark.parametrize("name", ["linear", "layer norm", "t5 norm"])
def test_rule_takes_non_contiguous_inputs(name: str) -> None:
    inputs = torch.randn(5, 7, BATCH, dtype=torch.float64).permute(2, 1, 0)
    _check(_randomised(_layer(name)), inputs)


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_embedding_equals_autograd(padding_idx: int | None) -> None:
    ids = torch.randint(0, 6, (BATCH, 9))  # with repetitions
    _check(_randomised(nn.Embedding(6, 3, padding_idx=padding_idx)), ids)


def test_rows_side_by_side_belong_to_one_example() -> None:
    module = _randomised(nn.Linear(5, 3))
    inputs = torch.randn(BATCH, 6, 5, dtype=torch.float64)

    def losses() -> Tensor:
        return module(inputs.flatten(0, 1)).sin().view(BATCH, -1).sum(1)

    with GradientCapture(module) as capture, capture.recording(BATCH) as recording:
        recording.backward(losses())
    expected = oracle.gradients(module, losses)
    torch.testing.assert_close(
        recording.gradients().dense("weight"), torch.stack([row["weight"] for row in expected]), rtol=1e-9, atol=1e-12
    )


def test_output_changed_in_place_afterwards() -> None:
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).mul_(3.0).sin()

    _check(_randomised(Changed()), torch.randn(BATCH, 5, dtype=torch.float64))


def test_a_users_hook_that_edits_the_output_is_seen_through() -> None:
    module = _randomised(nn.Sequential(nn.Linear(5, 3)))
    module[0].register_forward_hook(lambda layer, args, output: 2 * output)
    _check(module, torch.randn(BATCH, 5, dtype=torch.float64))


def test_layer_that_runs_twice_is_summed_with_its_cross_terms() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x).tanh())

    _check(_randomised(Twice()), torch.randn(BATCH, 3, 5, dtype=torch.float64))
