"""Changes of weights between two refreshes, copied or projected."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ftrace.gradients import Projection
from ftrace.online import weights_at_start
from ftrace.online.weights_at_start import WeightsAtStart


def parameters(dtype: torch.dtype) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (40, 30), "vector": (50,), "filters": (6, 4, 3), "wide": (2, 70), "number": ()}
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_small_changes_are_projected_as_if_they_had_been_known(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_at_start, "_CHUNK_NUMBERS", 64)
    weights, projection = parameters(dtype), Projection(4)
    kept = WeightsAtStart(projection)
    kept.take(weights, unprojected=["vector"])
    before = {name: weight.detach().double().clone() for name, weight in weights.items()}
    for _ in range(2):  # the second interval begins where the first has ended
        with torch.no_grad():
            for weight in weights.values():
                weight -= 1e-2 if dtype == torch.bfloat16 else 1e-5
        fallen = {name: (change, is_projected) for name, change, is_projected in kept.changes(weights)}
        assert fallen.keys() == weights.keys()
        for name, (change, is_projected) in fallen.items():
            assert is_projected == (name != "vector")
            expected = before[name] - weights[name].detach().double()
            expected = projection.project(name, expected[None])[0] if is_projected else expected
            torch.testing.assert_close(change.double(), expected, rtol=1e-9, atol=1e-12)
        kept.take(weights, unprojected=["vector"])
        before = {name: weight.detach().double().clone() for name, weight in weights.items()}


def test_it_comes_back_from_its_state_and_from_that_of_earlier_versions() -> None:
    weights, kept, again = parameters(torch.float32), WeightsAtStart(Projection(4)), WeightsAtStart(Projection(4))
    kept.take(weights, unprojected=[])
    again.load(kept.state())
    for (_, change, _), (_, expected, _) in zip(again.changes(weights), kept.changes(weights), strict=True):
        assert torch.equal(change, expected)
    again.load({"weights": {name: weight.detach() + 1 for name, weight in weights.items()}})
    for name, change, is_projected in again.changes(weights):
        assert not is_projected, name
        torch.testing.assert_close(change, torch.ones_like(change))
