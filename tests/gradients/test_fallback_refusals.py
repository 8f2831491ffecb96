"""The fallback refuses what it can't take apart, and puts back whatever a layer stores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ftrace.gradients import GradientCapture, find_coverage

BATCH, POSITIONS, WIDTH = 4, 3, 6


class WritesToItsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.div_(self.scale.norm())
        return x * self.scale


class ViewInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).view(len(x), -1)


class Mixes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) * self.scale


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.scale * self.calls


class CountsInfinities(Counts):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        masked = torch.arange(x.shape[-1]) < self.calls
        return (x * self.scale).masked_fill(masked, torch.inf)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (CountsInfinities, "run once more, it returned something else"),
        (WritesToItsWeight, "it writes to its own weights"),
        (Mixes, "its output for one example depends on the others"),
        (Counts, "run once more, it returned something else"),
    ],
)
def test_what_can_not_be_taken_apart_is_refused_by_name(layer: type[nn.Module], reason: str) -> None:
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), layer()).double()
    with GradientCapture(module) as capture, capture.recording(BATCH) as recording:
        recording.backward(module(torch.randn(BATCH, WIDTH, dtype=torch.float64)).sin().sum(1))
        with pytest.raises(ValueError, match=rf"layer '1' \({layer.__name__}\) has no rule, .*fallback: {reason}"):
            recording.gradients()


def test_a_view_that_is_changed_in_place_afterwards_is_refused() -> None:
    layer = ViewInPlace().double()
    with GradientCapture(layer) as capture, capture.recording(BATCH) as recording:
        layer(torch.randn(BATCH, WIDTH, dtype=torch.float64)).mul_(2).sin().sum().backward()
        with pytest.raises(ValueError, match="its output, a view, was changed in place afterwards"):
            recording.gradients()


def test_what_the_layer_keeps_for_itself_is_put_back() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(WIDTH))
            self.norm = nn.InstanceNorm1d(POSITIONS, track_running_stats=True)
            self.same = self.norm
            self.calls, self.seen = 0, []

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.seen.append(len(x))
            return self.same(self.norm(x)) * self.scale

    module = Keeps().double().train()
    with GradientCapture(module) as capture, capture.recording(BATCH) as recording:
        recording.backward(module(torch.randn(BATCH, POSITIONS, WIDTH, dtype=torch.float64)).sin().flatten(1).sum(1))
        seen, buffers = module.seen, dict(module.named_buffers())
        values = {name: buffer.clone() for name, buffer in buffers.items()}
        recording.gradients()
    assert (module.calls, module.seen) == (1, [BATCH])
    assert module.seen is seen
    assert isinstance(module.scale, nn.Parameter)
    for name, buffer in module.named_buffers():
        assert buffer is buffers[name]
        assert torch.equal(buffer, values[name])


def test_a_layer_that_something_was_added_to_is_a_gap() -> None:
    with pytest.warns(FutureWarning):
        module = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2)))
    assert {gap.parameter: gap.reason for gap in find_coverage(module).gaps}.keys() == {"0.weight_g", "0.weight_v"}
    assert "no rule for the 'weight_g' of a Linear at '0'" in find_coverage(module).gaps[0].reason


def test_running_statistics_are_left_alone() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(WIDTH))
            self.norm = nn.InstanceNorm1d(POSITIONS, track_running_stats=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) * self.scale

    module = Inside().double().train()
    with GradientCapture(module) as capture, capture.recording(BATCH) as recording:
        recording.backward(module(torch.randn(BATCH, POSITIONS, WIDTH, dtype=torch.float64)).sin().flatten(1).sum(1))
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        recording.gradients()
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
