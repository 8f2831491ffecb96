"""Rows of queries that come without a loader: those of a batch have the same shapes, so that nothing is padded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

_BATCH_SIZE = 64


def loader_of_rows(rows: Any) -> DataLoader:
    """Make a loader of a data set or list of queries; lists of numbers in a row become tensors."""
    if isinstance(rows, IterableDataset) or not hasattr(rows, "__len__"):
        return DataLoader(rows, batch_size=_BATCH_SIZE)
    batches: dict[Any, list[list[int]]] = {}
    for place in range(len(rows)):
        of_shape = batches.setdefault(_shape(rows[place]), [[]])
        if len(of_shape[-1]) == _BATCH_SIZE:
            of_shape.append([])
        of_shape[-1].append(place)
    all_batches = [batch for of_shape in batches.values() for batch in of_shape if batch]
    return DataLoader(rows, batch_sampler=all_batches, collate_fn=_collate)


def _shape(value: Any) -> Any:
    """Return what the rows of a batch must have in common."""
    if isinstance(value, Mapping):
        return tuple((name, _shape(item)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return len(value) if _are_numbers(value) else tuple(map(_shape, value))
    return tuple(value.shape) if isinstance(value, Tensor | np.ndarray) else None


def _collate(rows: list[Any]) -> Any:
    if all(isinstance(row, Mapping) for row in rows):
        rows = [
            {name: torch.tensor(item) if _are_numbers(item) else item for name, item in row.items()} for row in rows
        ]
    return default_collate(rows)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, int | float) for item in value)
