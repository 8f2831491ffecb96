"""A data set with some of its training rows left out, to train on it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset
from typing_extensions import override

from ftrace.arguments import Count, checked
from ftrace.data.collators import IGNORED
from ftrace.data.fact_data import FactData


class CollatedRows(Dataset):
    """Data set of all training rows, tokenized once; batches are bit-identical to the collator's.

    Args:
        data: The data, set up.
    """

    def __init__(self, data: FactData) -> None:
        loader = data.example_dataloader(batch_size=len(data.train_rows))
        self._rows: dict[str, Tensor] = next(iter(loader))

    def __len__(self) -> int:
        return len(self._rows["example_id"])

    def __getitem__(self, index: int) -> int:
        return index

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        """Return the rows of some indices, padded to the longest of them."""
        chosen = {name: rows[indices] for name, rows in self._rows.items()}
        return {name: rows[:, : _longest(name, chosen)] if rows.ndim > 1 else rows for name, rows in chosen.items()}


def _longest(name: str, batch: Mapping[str, Tensor]) -> int:
    """Return how many columns of a tensor ``[B, T]`` hold anything but padding."""
    is_real = batch["labels"] != IGNORED if name == "labels" else batch["attention_mask"] != 0
    return int(torch.nonzero(is_real.any(0)).max()) + 1


@checked
class KeptRows(LightningDataModule):
    """Data module without some of the training rows; the others keep their order.

    Args:
        data: The data set, set up.
        rows: Its training rows.
        is_kept: ``[N]`` bool, whether each training row is kept.
        order_seed: Seed of the order, of up to 63 bits; None keeps the order in which Lightning would have shuffled all
            rows, minus those that are left out.

    Raises:
        ValueError: If no row is kept, or ``is_kept`` has another length.
    """

    def __init__(
        self, data: FactData, rows: CollatedRows, is_kept: np.ndarray, order_seed: Count | None = None
    ) -> None:
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
        """Return a loader of one query: each validation draws a random number, which changes the next epoch's order."""
        collate = self._data.query_dataloader().collate_fn
        return DataLoader(Subset(self._data.query_rows, [0]), collate_fn=collate)


class _KeptSampler(RandomSampler):
    """Sampler of all rows in random order, without those that are left out."""

    def __init__(self, rows: CollatedRows, is_kept: np.ndarray, generator: torch.Generator | None) -> None:
        super().__init__(rows, generator=generator)
        self._is_kept = is_kept

    @override
    def __iter__(self) -> Iterator[int]:
        return (index for index in super().__iter__() if self._is_kept[index])

    @override
    def __len__(self) -> int:
        return int(self._is_kept.sum())
