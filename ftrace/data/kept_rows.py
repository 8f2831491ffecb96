"""A data set with some of its training rows left out, to train on it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset
from typing_extensions import override

from ftrace.data.collators import IGNORED
from ftrace.data.fact_data import FactData


class CollatedRows(Dataset):
    """All training rows, tokenized once; a batch of them is bit by bit what the collator makes of the rows.

    Args:
        data: A data set, set up.
    """

    def __init__(self, data: FactData) -> None:
        loader = data.example_dataloader(batch_size=len(data.train_rows))
        self._rows: dict[str, Tensor] = next(iter(loader))

    def __len__(self) -> int:
        return len(self._rows["example_id"])

    def __getitem__(self, place: int) -> int:
        return place

    def batch(self, places: list[int]) -> dict[str, Tensor]:
        """The rows in some places, as long as the longest of them."""
        chosen = {name: rows[places] for name, rows in self._rows.items()}
        return {name: rows[:, : _longest(name, chosen)] if rows.ndim > 1 else rows for name, rows in chosen.items()}


def _longest(name: str, batch: Mapping[str, Tensor]) -> int:
    """How many columns of a tensor ``[B, T]`` hold anything but what rows are filled up with."""
    is_real = batch["labels"] != IGNORED if name == "labels" else batch["attention_mask"] != 0
    return int(torch.nonzero(is_real.any(0)).max()) + 1


class KeptRows(LightningDataModule):
    """A data set of which some training rows are left out; the others keep their order.

    Args:
        data: The data set, set up.
        rows: Its training rows.
        is_kept: ``[N]`` bool, whether each training row is kept.
        order_seed: Of the order; None: the very order in which Lightning would have shuffled all rows, without those
            that are left out.

    Raises:
        ValueError: If no row is kept, or ``is_kept`` is not of this data.
    """

    def __init__(self, data: FactData, rows: CollatedRows, is_kept: np.ndarray, order_seed: int | None = None) -> None:
        super().__init__()
        if is_kept.shape != (len(rows),) or not is_kept.any():
            raise ValueError(f"expected some of {len(rows)} rows to be kept, found {is_kept.sum()} of {is_kept.shape}")
        self.tokenizer, self.architecture = data.tokenizer, data.architecture
        self._data, self._rows = data, rows
        generator = None if order_seed is None else torch.Generator().manual_seed(order_seed)
        self._sampler = _KeptSampler(rows, is_kept, generator)

    @override
    def train_dataloader(self) -> DataLoader:
        return DataLoader(
            self._rows, batch_size=self._data.batch_size, sampler=self._sampler, collate_fn=self._rows.batch
        )

    @override
    def val_dataloader(self) -> DataLoader:
        """One query: each validation draws a random number, which the order of the next epoch depends on."""
        collate = self._data.query_dataloader().collate_fn
        return DataLoader(Subset(self._data.query_rows, [0]), collate_fn=collate)


class _KeptSampler(RandomSampler):
    """All places in random order, without those that are left out."""

    def __init__(self, rows: CollatedRows, is_kept: np.ndarray, generator: torch.Generator | None) -> None:
        super().__init__(rows, generator=generator)
        self._is_kept = is_kept

    @override
    def __iter__(self) -> Iterator[int]:
        return (place for place in super().__iter__() if self._is_kept[place])

    @override
    def __len__(self) -> int:
        return int(self._is_kept.sum())
