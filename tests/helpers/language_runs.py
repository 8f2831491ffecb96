"""Training runs of tiny language models in a module that knows nothing of attribution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from helpers import tiny


class Module(pl.LightningModule):
    """Wraps a Hugging Face model and knows nothing of attribution."""

    def __init__(self, kind: str, dtype: torch.dtype = torch.float64, groups: bool = False, **config: Any) -> None:
        super().__init__()
        self.model = tiny.MODELS[kind](dtype, **config)
        self.groups = groups

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        # The model's own loss, but in the model's dtype: GPT-2 would take it in float32.
        labels = batch["labels"] if self.model.config.is_encoder_decoder else batch["labels"][:, 1:]
        return tiny.losses(self.model, batch).sum() / (labels != -100).sum()

    def configure_optimizers(self) -> Any:
        parameters = list(self.parameters())
        groups = [{"params": parameters}]
        if self.groups:
            groups = [{"params": parameters[::2], "lr": 0.03}, {"params": parameters[1::2]}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7), "interval": "step"}]


class AdamModule(Module):
    """With AdamW, which has second moments."""

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def rows(kind: str, count: int, seed: int = 0, key: str = "example_id", length: int = 7) -> list[dict[str, Any]]:
    batch = tiny.batch(kind, count, seed, length)
    return [{**{name: values[i] for name, values in batch.items()}, key: 10 * i + 3} for i in range(count)]


def queries(kind: str) -> DataLoader:
    return DataLoader(rows(kind, 5, seed=1, key="query_id", length=6), batch_size=3)


def fit(
    module: pl.LightningModule, loader: Any, tmp_path: Path, callbacks: Sequence[pl.Callback] = (), **trainer: Any
) -> pl.Trainer:
    pl.seed_everything(7, verbose=False)
    double = any(parameter.dtype == torch.float64 for parameter in module.parameters())
    settings: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
        "precision": "64-true" if double else "32-true",
    }
    made = pl.Trainer(**{**settings, **trainer}, callbacks=list(callbacks))
    made.fit(module, loader)
    return made


def weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
