"""`ftrace.online.trace` and the optimizers of a loop: fused with a loss scaler, replaced, wrapped, two runs at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ftrace.online import trace
from ftrace.scores import ScoreStore

GENERATOR = torch.Generator().manual_seed(0)
EXAMPLES = [{"x": torch.randn(3, generator=GENERATOR), "example_id": i} for i in range(6)]
ASKED = [{"x": torch.randn(3, generator=GENERATOR), "query_id": i} for i in range(2)]
BATCHES = [torch.utils.data.default_collate(EXAMPLES[i : i + 2]) for i in (0, 2, 4)]


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["x"]).square().sum(1)


def mean_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return losses(model, batch).mean()


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def traced(model: nn.Module, optimizers: Any, folder: Path, **settings: Any) -> Any:
    return trace(model, optimizers, mean_loss, queries=ASKED, query_losses=losses, output_dir=folder, **settings)


def scaled(folder: Path, *, fused: bool, clip: bool, **settings: Any) -> ScoreStore:
    model, scaler = net(), torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    with traced(model, optimizer, folder, scaler=scaler, scores=("dot", "update"), **settings) as run:
        for batch in BATCHES:
            optimizer.zero_grad()
            run.backward(scaler.scale(run.loss(batch)))
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            scaler.step(optimizer)
            scaler.update()
    return ScoreStore.open(folder)


@pytest.mark.parametrize("self_check", [True, False])
@pytest.mark.parametrize("clip", [True, False])
def test_a_fused_optimizer_takes_the_loss_scale_out_itself_unless_it_is_out(
    clip: bool, self_check: bool, tmp_path: Path
) -> None:
    plain, fused = (
        scaled(tmp_path / str(is_fused), fused=is_fused, clip=clip, self_check=self_check) for is_fused in (False, True)
    )
    for kind in ("dot", "update"):
        np.testing.assert_allclose(fused.matrix(kind), plain.matrix(kind), rtol=1e-4, atol=1e-8)
        assert np.abs(plain.matrix(kind)).max() > 0


def test_an_optimizer_that_was_not_named_is_refused(tmp_path: Path) -> None:
    model = net()
    first, second = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))

    def train(optimizers: Any, folder: Path) -> None:
        with traced(model, optimizers, folder) as run:
            for optimizer, batch in zip((first, second), BATCHES, strict=False):
                optimizer.zero_grad()
                run.backward(run.loss(batch))
                optimizer.step()

    with pytest.raises(ValueError, match=r"SGD steps parameters of the model.*Name all optimizers"):
        train(first, tmp_path / "one")
    train([first, second], tmp_path / "both")  # the remedy
    other = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    first.zero_grad()
    with traced(model, first, tmp_path / "other") as run:
        run.backward(run.loss(BATCHES[0]))
        first.step()
        other.step()  # trains something else
    torch.optim.SGD(model.parameters(), lr=0.1).step()  # after the run


class Wrapper(torch.optim.Optimizer):
    """Steps another optimizer, as Lookahead does."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})
        self.inner = inner

    def step(self, closure: Any = None) -> None:
        self.inner.step()


def test_an_optimizer_may_be_wrapped(tmp_path: Path) -> None:
    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    outer = Wrapper(inner)
    with traced(model, inner, tmp_path / "s") as run:
        for batch in BATCHES:
            outer.zero_grad()
            run.backward(run.loss(batch))
            outer.step()
    assert ScoreStore.open(tmp_path / "s").manifest["steps"] == 3


def test_two_runs_of_one_model_at_once_are_refused(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with traced(model, optimizer, tmp_path / "a") as run:
        with pytest.raises(ValueError, match="one run at a time"):
            traced(model, optimizer, tmp_path / "b").__enter__()
        run.backward(run.loss(BATCHES[0]))
        optimizer.step()
    optimizer.zero_grad()
    with traced(model, optimizer, tmp_path / "b") as run:  # the remedy
        run.backward(run.loss(BATCHES[0]))
        optimizer.step()


def layers_and_optimizers(dtype: torch.dtype) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """Two layers, each with an optimizer of its own; the second is in a dtype of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2).to(dtype))
    model[2].register_forward_pre_hook(lambda layer, args: (args[0].to(layer.weight.dtype),))
    return model, [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (model[0], model[2])]


@pytest.mark.parametrize(
    "settings", [{"parameters": ("2.*",)}, {"parameters": ("0.*",)}, {}, {"projection_side": 2}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_optimizers_of_parameters_left_out_or_of_another_dtype(
    settings: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    model, optimizers = layers_and_optimizers(dtype)
    with traced(model, optimizers, tmp_path / "s", scores=("dot", "update", "cosine"), **settings) as run:
        for batch in BATCHES:
            run.backward(run.loss(batch))
            for optimizer in optimizers:
                optimizer.step()
            for optimizer in optimizers:
                optimizer.zero_grad()
    store = ScoreStore.open(tmp_path / "s")
    assert store.manifest["ledger"]["worst_imbalance"] < 1e-5
    assert np.abs(store.matrix("dot")).min() > 0


def test_a_backward_pass_that_nobody_saw_is_refused_still(tmp_path: Path) -> None:
    model, optimizers = layers_and_optimizers(torch.float32)
    with traced(model, optimizers, tmp_path / "s") as run:
        run.loss(BATCHES[0]).backward()
        with pytest.raises(ValueError, match="didn't run"):
            optimizers[0].step()
