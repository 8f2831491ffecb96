"""Modules that know nothing of ftrace, an image classifier and LoRA adapters: OnlineTracIn against plain autograd."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from helpers import oracle, tiny
from helpers.replay_runs import fit


class Images(pl.LightningModule):
    """An image classifier that knows nothing of ftrace."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny.Classifier().double()

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch["image"]), batch["label"], label_smoothing=0.1)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def image_losses(module: Any, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(module.model(batch["image"]), batch["label"], reduction="none")


def image_rows(count: int, key: str, seed: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 7, 7, generator=generator).double()
    return [{"image": images[i], "label": i % 5, key: i} for i in range(count)]


class Adapters(pl.LightningModule):
    """A decoder-only language model with LoRA adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny.lora()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return tiny.losses(self.model, batch).sum() / 20

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def adapter_rows(count: int, key: str, seed: int) -> list[dict[str, Any]]:
    batch = tiny.batch("lora", count, seed)
    return [{**{name: values[i] for name, values in batch.items()}, key: i} for i in range(count)]


def language_losses(module: Any, batch: dict[str, Tensor]) -> Tensor:
    return tiny.losses(module.model, batch)


@pytest.mark.parametrize("kind", ["images", "adapters"])
def test_foreign_modules(kind: str, tmp_path: Path) -> None:
    """The first step against plain autograd; all of them against the true change of the weights."""
    make, rows, losses = {
        "images": (Images, image_rows, image_losses), "adapters": (Adapters, adapter_rows, language_losses)
    }[kind]  # fmt: skip
    module, examples, asked = make(), rows(6, "example_id", 0), rows(3, "query_id", 1)
    start = copy.deepcopy(module)
    online = {"queries": DataLoader(asked, batch_size=2), "query_losses": losses, "integration": "trapezoid"}
    store = fit(tmp_path, module, DataLoader(examples, batch_size=3), online, max_epochs=1)
    assert store.manifest["ledger"]["worst_imbalance"] < 1e-8
    store = fit(
        tmp_path / "left", copy.deepcopy(start), DataLoader(examples[:3], batch_size=3),
        {**online, "integration": "left", "scores": ("dot",)}, max_epochs=1,
    )  # fmt: skip
    first = default_collate(examples[:3])
    question = default_collate(asked)

    def own() -> Tensor:
        if kind == "images":
            rates = nn.functional.cross_entropy(start.model(first["image"]), first["label"], label_smoothing=0.1,
                                                reduction="none")  # fmt: skip
            return rates / 3
        return tiny.losses(start.model, first) / 20

    start.eval()
    expected = (
        oracle.matrix(oracle.gradients(start, own))
        @ oracle.matrix(oracle.gradients(start, lambda: losses(start, question))).T
    )
    rate = 1e-3 if kind == "images" else 1e-2
    np.testing.assert_allclose(store.matrix("dot"), rate * expected.numpy(), rtol=1e-7, atol=1e-12)
