"""Keys and values of the tokens before a restored position, which are those of the corrupted run with the same noise.

Shape letters: N noise samples, R rows, H heads, T tokens, W width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ftrace.causal.row_plan import RowPlan


class _PrefixLayer(DynamicLayer):
    """One layer's keys and values of the first tokens, for each row of a growing batch."""

    def __init__(self, keys: Tensor, values: Tensor, plan: RowPlan) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._plan = plan

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the prefix and what follows it. Nothing is kept, because each layer runs once."""
        rows = self._plan.noise_of_rows(len(key_states))
        return (
            torch.cat([self.keys[rows], key_states], dim=-2),
            torch.cat([self.values[rows], value_states], dim=-2),
        )


def recording_cache(num_layers: int) -> Cache:
    """Make a cache that keeps all keys and values, even those of layers that attend to a few recent tokens only."""
    return Cache(layers=[DynamicLayer() for _ in range(num_layers)])


def joined_caches(caches: Sequence[Cache], joined: Callable[[Sequence[Tensor]], Tensor]) -> Cache:
    """Join recorded caches of different rows, given a function that joins their tensors."""
    layers = []
    for parts in zip(*(cache.layers for cache in caches), strict=True):
        layer = DynamicLayer()
        keys, values = joined([part.keys for part in parts]), joined([part.values for part in parts])
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        layers.append(layer)
    return Cache(layers=layers)


def prefix_cache(recorded: Cache, length: int, plan: RowPlan, rows: Tensor | None = None) -> Cache:
    """Make a cache of the first tokens' keys and values for growing rows.

    Args:
        recorded: The cache of the clean and the corrupted runs, ``[1 + N, H, T, W]`` in each layer.
        length: How many tokens the prefix has.
        rows: The runs that the plan is of, the clean one first; None: all.
    """
    layers = []
    for layer in recorded.layers:
        keys, values = layer.keys[:, :, :length], layer.values[:, :, :length]
        layers.append(
            _PrefixLayer(keys, values, plan) if rows is None else _PrefixLayer(keys[rows], values[rows], plan)
        )
    return Cache(layers=layers)
