"""Keys and values of what stands before a restored place: those of the corrupted run with the same noise.

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
    """One layer's keys and values of the first tokens, given to each row of a growing batch."""

    def __init__(self, keys: Tensor, values: Tensor, plan: RowPlan) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._plan = plan

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The prefix and what follows it. Nothing is kept: each layer is run once."""
        rows = self._plan.noise_of_rows(len(key_states))
        return (
            torch.cat([self.keys[rows], key_states], dim=-2),
            torch.cat([self.values[rows], value_states], dim=-2),
        )


def recording_cache(num_layers: int) -> Cache:
    """A cache that keeps all keys and values, also of layers that attend to a window only."""
    return Cache(layers=[DynamicLayer() for _ in range(num_layers)])


def joined_caches(caches: Sequence[Cache], joined: Callable[[Sequence[Tensor]], Tensor]) -> Cache:
    """Recorded caches of some rows each as one, by what joins their tensors."""
    layers = []
    for own in zip(*(one.layers for one in caches), strict=True):
        layer = DynamicLayer()
        keys, values = joined([one.keys for one in own]), joined([one.values for one in own])
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        layers.append(layer)
    return Cache(layers=layers)


def prefix_cache(recorded: Cache, length: int, plan: RowPlan, rows: Tensor | None = None) -> Cache:
    """A cache of the first tokens' keys and values for growing rows.

    Args:
        recorded: Of the clean and the corrupted runs, ``[1 + N, H, T, W]`` in each layer.
        length: How many tokens the prefix has.
        plan: The rows.
        rows: Of which of the runs, the clean one first; None: of all.
    """
    layers = []
    for one in recorded.layers:
        keys, values = one.keys[:, :, :length], one.values[:, :, :length]
        layers.append(
            _PrefixLayer(keys, values, plan) if rows is None else _PrefixLayer(keys[rows], values[rows], plan)
        )
    return Cache(layers=layers)
