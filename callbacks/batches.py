"""Batches of examples and queries, as the user's loaders give them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader


def load_queries(source: Any, trainer: Trainer) -> list[Any]:
    """All batches of queries, on the device, without drawing from any random state that training draws from.

    Args:
        source: A DataLoader, a Dataset, or None: the datamodule's ``query_dataloader()``.
        trainer: The trainer.

    Raises:
        ValueError: If there is no source or no query.
    """
    make = getattr(getattr(trainer, "datamodule", None), "query_dataloader", None)
    if source is None and make is None:
        raise ValueError("no queries: expected queries=DataLoader(...) or a datamodule with query_dataloader()")
    with isolate_rng():  # an iterator over a DataLoader draws a random number
        source = make() if source is None and make is not None else source
        loader = source if isinstance(source, DataLoader) else DataLoader(source, batch_size=64)
        with _random_state_of(loader):
            batches = [trainer.strategy.batch_to_device(batch, dataloader_idx=0) for batch in loader]
    if not batches:
        raise ValueError("queries: expected at least one, found none")
    return batches


def batch_ids(batch: Any, key: str, option: str) -> Tensor:
    """The ids in a batch, ``[B]`` integers.

    Args:
        batch: The batch.
        key: Under which key they are.
        option: Which argument of the callback names another key.

    Raises:
        ValueError: If the batch has no such key, or something else under it.
    """
    try:
        ids = batch[key]
    except (KeyError, TypeError, IndexError) as error:
        found = f"keys {list(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ValueError(
            f'batch has no "{key}": found {found}. Add ids with ftrace.data.WithExampleIds(dataset), or pass '
            f"{option}=..."
        ) from error
    ids = torch.as_tensor(ids)
    if ids.ndim != 1 or ids.is_floating_point():
        raise ValueError(f'batch["{key}"]: expected integers of shape [B], found {ids.dtype} {tuple(ids.shape)}')
    return ids


@contextmanager
def _random_state_of(loader: Any) -> Iterator[None]:
    """Put the generators that a DataLoader has of its own back to where they were, beside the global ones."""
    found = [getattr(owner, "generator", None) for owner in (loader, getattr(loader, "sampler", None))]
    generators = [generator for generator in found if isinstance(generator, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
