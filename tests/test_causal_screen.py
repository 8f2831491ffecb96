"""The benchmark of estimated causal traces: slopes against plain autograd, and grids some of whose cells are exact."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ftrace.causal import CausalSettings, CausalTracer
from ftrace.causal.mediators import make_cell
from helpers import tiny

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TOKEN = 3


@pytest.fixture(scope="module")
def estimating() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("screen_estimates")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def cells(estimating: Any) -> Any:
    return importlib.import_module("screen_cells")


class Setup:
    """A tiny model with embeddings of a prompt, clean and twice corrupted."""

    def __init__(self, estimating: Any) -> None:
        torch.manual_seed(0)
        self.model: Any = tiny.llama(torch.float64, num_hidden_layers=4).eval().requires_grad_(False)
        self.stack = CausalTracer(self.model, CausalSettings(mediators=("hidden",))).passes.stacks["decoder"]
        clean = self.model.get_input_embeddings()(torch.tensor([[1, 4, 2, 6]]))
        corrupted = clean.repeat(2, 1, 1)
        corrupted[:, 1:3] += torch.randn(2, 2, clean.shape[-1], dtype=torch.float64) * clean.std()
        self.given = corrupted
        self.clean = estimating.differentiate(self.model, self.stack, clean.repeat(2, 1, 1), TOKEN)
        self.corrupted = estimating.differentiate(self.model, self.stack, corrupted, TOKEN)
        self.changes = {kind: self.clean.states[kind] - self.corrupted.states[kind] for kind in estimating.KINDS}

    def run(self, kind: str, layer: int, change: Tensor) -> Tensor:
        """Run the corrupted prompt with something added to a module's output; the logits at the last token."""
        module = self.stack.layers[layer] if kind == "hidden" else self.stack.modules[kind][layer]  # type: ignore[index]

        def add(_module: Any, _args: Any, output: Any) -> Any:
            return (output[0] + change, *output[1:]) if isinstance(output, tuple) else output + change

        handle = module.register_forward_hook(add)
        logits: Tensor = self.model(inputs_embeds=self.given, use_cache=False).logits[:, -1]
        handle.remove()
        return logits


@pytest.fixture(scope="module")
def setup(estimating: Any) -> Setup:
    return Setup(estimating)


def test_an_estimate_is_the_slope_towards_the_restored_run(estimating: Any, setup: Setup) -> None:
    for kind in estimating.KINDS:
        estimates = setup.corrupted.by_tokens(kind, setup.changes[kind])
        for layer in range(len(setup.stack.layers)):
            for token in range(4):
                step = torch.zeros(2, dtype=torch.float64, requires_grad=True)
                change = torch.zeros_like(setup.given)
                change[:, token] = setup.changes[kind][:, layer, token]
                odds = torch.logit(setup.run(kind, layer, step[:, None, None] * change).softmax(-1)[:, TOKEN])
                slope = torch.autograd.grad(odds.sum(), step)[0]
                torch.testing.assert_close(estimates[layer, token], slope, rtol=1e-9, atol=1e-12)


def test_norms_that_are_frozen_change_slopes_alone(estimating: Any, setup: Setup) -> None:
    frozen = estimating.differentiate(setup.model, setup.stack, setup.given, TOKEN, frozen_norms=True)
    torch.testing.assert_close(frozen.log_odds, setup.corrupted.log_odds, rtol=1e-5, atol=0)  # norms are float32's
    assert (frozen.slopes["hidden"] - setup.corrupted.slopes["hidden"]).abs().max() > 1e-3


def test_layers_that_are_run_leave_the_rest_to_the_slope(estimating: Any, setup: Setup) -> None:
    last = len(setup.stack.layers) - 1
    found = estimating.looked_ahead(setup.stack, setup.corrupted, setup.changes["hidden"], last)
    for layer in range(last):
        for token in range(4):
            change = torch.zeros_like(setup.given)
            change[:, token] = setup.changes["hidden"][:, layer, token]
            outputs: list[Tensor] = []
            handle = setup.stack.layers[last].register_forward_hook(
                lambda _module, _args, output, outputs=outputs: outputs.append(estimating.states_of(output))
            )
            setup.run("hidden", layer, change)
            handle.remove()
            lifted = outputs[0] - setup.corrupted.states["hidden"][:, last]
            expected = (setup.corrupted.slopes["hidden"][:, last] * lifted).sum((-1, -2))
            torch.testing.assert_close(found[layer, token], expected, rtol=1e-9, atol=1e-12)


def test_windows_are_those_of_causal_tracing(estimating: Any) -> None:
    values = 2.0 ** torch.arange(12).view(12, 1, 1)
    for window in (1, 3, 10):
        summed = estimating.over_windows(values, window)
        for layer in range(12):
            (override,) = make_cell("mlp", layer, 0, 12, window).overrides
            assert summed[layer] == values[override.first : override.stop].sum()


def _grid(cells: Any, estimates: np.ndarray | None = None, peak: int = 6) -> Any:
    """A grid of 12 layers, 3 tokens and 2 samples, whose effects rise to one layer of the first token and fall."""
    layers = np.arange(12)[:, None, None]
    changes = 3 * np.exp(-(((layers - peak) / 3.0) ** 2)) * np.array([1, 0.3, 0.1])[:, None] * np.array([1, 1.2])
    first = np.array([-2.0, -2.5])
    run = np.ones((12, 3), dtype=bool)
    costs = cells.costs_of_cells(np.arange(1, 13), 3, 8.0)
    return cells.ScreenedGrid(
        first + changes, first, 200.0, changes if estimates is None else estimates, run, run, costs
    )


def test_estimates_that_are_exact_need_no_run(cells: Any) -> None:
    grid = _grid(cells)
    np.testing.assert_allclose(grid.values(), grid.truth_LT, rtol=1e-3)  # bent a little
    assert grid.correlation() == pytest.approx(1)
    assert (grid.place_of_largest(), grid.share) == (0, 0)


def test_cells_that_ran_are_exact_and_correct_those_between(cells: Any) -> None:
    grid = _grid(cells, np.zeros((12, 3, 2)))
    grid.confirm((layer, token) for layer in range(0, 12, 2) for token in range(3))
    np.testing.assert_array_equal(grid.values()[::2], grid.truth_LT[::2])
    assert grid.correlation() > 0.95
    grid.confirm((layer, token) for layer in range(12) for token in range(3))
    np.testing.assert_array_equal(grid.values(), grid.truth_LT)
    assert grid.share == pytest.approx(1)


@pytest.mark.parametrize("peak", [0, 3, 6, 11])
def test_the_largest_is_found_before_all_cells_ran(cells: Any, peak: int) -> None:
    grid = _grid(cells, np.zeros((12, 3, 2)), peak)
    grid.confirm((layer, token) for layer in (2, 8) for token in range(3))
    grid.confirm_largest(2, errors=3.0)
    assert grid.is_largest_found
    assert grid.share < 0.8


def test_costs_are_tokens_times_layers_and_the_head(cells: Any) -> None:
    np.testing.assert_array_equal(cells.costs_of_cells(np.array([1, 2]), 3, 5.0), [[8, 7, 6], [5, 5, 5]])
