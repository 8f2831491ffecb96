"""In each precision, the self-check takes rounding for rounding, and faults for faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftrace.callbacks import GradientIndexWriter, OnlineTracIn, SelfCheckError
from ftrace.scores import ScoreStore
from helpers.language_runs import Module, fit, queries, rows

# By precision: the dtype of weights, and a factor of gradients that is a fault, and no rounding.
PRECISIONS = {
    "64-true": (torch.float64, 1 + 1e-6),
    "32-true": (torch.float32, 1.02),
    "16-true": (torch.float16, 1.1),
    "bf16-true": (torch.bfloat16, 1.3),
    "bf16-mixed": (torch.float32, 1.02),
}


class Trained(Module):
    """With an optimizer by name, and a change of gradients after the callback has seen them."""

    def __init__(self, dtype: torch.dtype, optimizer: str = "adamw", factor: float = 1.0, clip_to: float = 0.0) -> None:
        super().__init__("gpt2", dtype)
        self.by_name, self.factor, self.clip_to = optimizer, factor, clip_to

    def configure_optimizers(self) -> Any:
        if self.by_name == "adamw":
            return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1, eps=1e-4)
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.clip_to:
            nn.utils.clip_grad_norm_(self.parameters(), self.clip_to)
        for parameter in self.parameters():
            if parameter.grad is not None and self.factor != 1:
                parameter.grad.mul_(self.factor)


class HiddenBias(Trained):
    """Uses a bias once more, where no hook reads it."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        bias = self.model.transformer.ln_f.bias
        return super().training_step(batch, batch_idx) + 0.3 * (bias * bias.new_tensor(range(len(bias)))).mean()


def run(module: pl.LightningModule, precision: str, tmp_path: Path, clip: float | None = 0.2, **online: Any) -> Any:
    callback = OnlineTracIn(queries("gpt2"), tmp_path / "online", **{"refresh_every_n_steps": 1, **online})
    loader = DataLoader(rows("gpt2", 8), batch_size=4)
    fit(module, loader, tmp_path, [callback], precision=precision, gradient_clip_val=clip)
    return ScoreStore.open(tmp_path / "online").manifest


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_false_alarm(precision: str, optimizer: str, tmp_path: Path) -> None:
    manifest = run(Trained(PRECISIONS[precision][0], optimizer), precision, tmp_path, scores=("dot", "update"))
    assert manifest["self_check"] == {"failures": []}
    dtype = str(PRECISIONS[precision][0]).removeprefix("torch.")
    assert manifest["weights"] == {dtype: sum(p.numel() for p in Trained(torch.float32).parameters())}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_no_false_alarm_where_only_the_weights_say_their_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    """As where a checkpoint was loaded in its own dtype."""
    manifest = run(Trained(dtype), "32-true", tmp_path, scores=("dot", "learning"), projection_side=4)
    assert manifest["self_check"] == {"failures": []}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_false_alarm_in_an_index(precision: str, tmp_path: Path) -> None:
    writer = GradientIndexWriter(tmp_path / "index", projection_side=4)
    loader = DataLoader(rows("gpt2", 8), batch_size=4)
    fit(Trained(PRECISIONS[precision][0]), loader, tmp_path, [writer], precision=precision, gradient_clip_val=0.2)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_wrong_factor_is_found(precision: str, tmp_path: Path) -> None:
    dtype, factor = PRECISIONS[precision]
    with pytest.raises(SelfCheckError, match=r"at step 0 the optimizer stepped with a gradient of norm"):
        run(Trained(dtype, factor=factor), precision, tmp_path, clip=None)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_wrong_clip_factor_is_found(precision: str, tmp_path: Path) -> None:
    dtype, factor = PRECISIONS[precision]
    with pytest.raises(SelfCheckError, match="or clipping of another kind or to another norm"):
        run(Trained(dtype, clip_to=0.2 / factor), precision, tmp_path, clip=0.2)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_forgotten_bias_is_found(precision: str, tmp_path: Path) -> None:
    with pytest.raises((SelfCheckError, ValueError), match=r'"!model.transformer.ln_f.bias"'):
        run(HiddenBias(PRECISIONS[precision][0]), precision, tmp_path)
