"""Batches of examples and queries, as the user's loaders give them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader

from ftrace.scores import stable_id


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
            device = trainer.lightning_module.device
            batches = [
                trainer.strategy.batch_to_device(
                    trainer.precision_plugin.convert_input(batch), device, dataloader_idx=0
                )
                for batch in loader
            ]
    if not batches:
        raise ValueError("queries: expected at least one, found none")
    return batches


def batch_ids(batch: Any, key: str, option: str, names: dict[int, str] | None = None) -> Tensor:
    """The ids in a batch, ``[B]`` int64.

    Args:
        batch: The batch. A list or a dictionary of batches, as several dataloaders give, has the ids of all of them.
        key: Under which key they are.
        option: Which argument of the callback names another key.
        names: Gets the names of ids that are text, which are mapped to numbers by :func:`ftrace.scores.stable_id`.

    Raises:
        ValueError: If the batch has no such key, or something else under it.
    """
    several = batches_in(batch, key)
    if several is not None:
        return torch.cat([batch_ids(one, key, option, names) for one in several.values()])
    try:
        ids = batch[key]
    except (KeyError, TypeError, IndexError) as error:
        found = f"keys {list(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ValueError(
            f'batch has no "{key}": found {found}. Add ids with ftrace.data.WithExampleIds(dataset), or pass '
            f"{option}=..."
        ) from error
    if isinstance(ids, str | bytes) or (isinstance(ids, Sequence) and any(isinstance(one, str) for one in ids)):
        return _named_ids(ids, key, names)
    try:
        ids = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f'batch["{key}"]: expected integers of shape [B] or a list of names, found {ids!r:.60}'
        ) from error
    if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(
            f'batch["{key}"]: expected integers of shape [B] or a list of names, found {ids.dtype} {tuple(ids.shape)}. '
            "Number the rows of the data set, not of the batch"
        )
    return ids.long()


def batch_sizes(batch: Any, key: str) -> list[int]:
    """Sizes of the batches of several dataloaders, 0 for one that has run out; of one batch, nothing."""
    several = batches_in(batch, key)
    if several is None:
        return []
    places = batch if isinstance(batch, Mapping) else range(len(batch))
    return [len(several[place][key]) if place in several else 0 for place in places]


def batches_in(batch: Any, key: str) -> dict[Any, Any] | None:
    """The batches of several dataloaders by place, without those that have run out; None if this is one batch."""
    if isinstance(batch, Mapping):
        places = dict(batch) if key not in batch else {}
    else:
        places = dict(enumerate(batch)) if isinstance(batch, list | tuple) else {}
    inner = {place: one for place, one in places.items() if one is not None}
    return inner if inner and all(isinstance(one, Mapping) and key in one for one in inner.values()) else None


def _named_ids(found: Any, key: str, names: dict[int, str] | None) -> Tensor:
    if isinstance(found, str | bytes) or not all(isinstance(one, str) for one in found):
        raise ValueError(f'batch["{key}"]: expected integers of shape [B] or a list of names, found {found!r:.60}')
    numbered = [stable_id(one) for one in found]
    if names is not None:
        names.update(zip(numbered, found, strict=True))
    return torch.tensor(numbered, dtype=torch.int64)


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
