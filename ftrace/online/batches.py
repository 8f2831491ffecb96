"""Ids in batches of examples and queries, and the loading of queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from ftrace.online.loop import TrainingLoop
from ftrace.online.queries.query_rows import loader_of_rows
from ftrace.online.undisturbed.random_state import isolated_random_state
from ftrace.scores import stable_id


def load_queries(source: Any, loop: TrainingLoop) -> list[Any]:
    """Load all batches of queries to the device, without a change to any random state that training draws from.

    Args:
        source: A DataLoader or Dataset of queries; None: the loop's own queries.

    Raises:
        ValueError: If there is no source or no query.
    """
    with isolated_random_state():  # an iterator over a DataLoader draws a random number
        source = loop.query_loader() if source is None else source
        if source is None:
            raise ValueError(f"no queries: expected queries=DataLoader(...){loop.wording.queries}")
        source = getattr(source, "_dataloader", source)  # inside of one that Fabric has set up
        if isinstance(source, Mapping | Iterator):
            raise ValueError(
                f"queries: expected a DataLoader, a Dataset or a list of queries, found {type(source).__name__}. "
                "Pass a list of queries, one dictionary each, or of ready batches DataLoader(batches, batch_size=None)"
            )
        loader = source if isinstance(source, DataLoader) else loader_of_rows(source)
        _refuse_a_share(loader)
        with _random_state_of(loader):
            batches = [loop.to_device(batch) for batch in loader]
    if not batches:
        raise ValueError("queries: expected at least one, found none")
    return batches


def batch_ids(batch: Any, key: str | int, option: str, names: dict[int, str] | None = None) -> Tensor:
    """Return the ids in a batch, ``[B]`` int64.

    Args:
        batch: The batch. A list or dictionary of batches, as several dataloaders give it, has the ids of all of them.
        key: The key of the ids.
        option: The argument of the callback by which the user can name another key; used in messages.
        names: By number, the names of all ids so far that were text; changed in place. Text becomes a number by
            :func:`ftrace.scores.stable_id`. If some ids are names, all must be.

    Raises:
        ValueError: If the batch doesn't have this key, or no ids under it; if some ids are names and others are
            numbers; or if two names become the same number.
    """
    several = batches_in(batch, key)
    if several is not None:
        all_ids = torch.cat([batch_ids(of_loader, key, option, names) for of_loader in several.values()])
        if names and not all(number in names for number in all_ids.tolist()):
            raise _mixed(key, names)
        return all_ids
    try:
        ids = _value_of(batch, key)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(_missing(batch, key, option)) from error
    if not isinstance(ids, Tensor) and hasattr(ids, "__array__"):  # of numpy or pandas
        array = np.asarray(ids)
        is_numeric = array.dtype.kind in "biuf"
        ids = array.astype(array.dtype.newbyteorder("=")) if is_numeric else array.tolist()
    if isinstance(ids, str | bytes) or (isinstance(ids, Sequence) and any(isinstance(id_, str | bytes) for id_ in ids)):
        return _named_ids(ids, key, names)
    if names:
        raise _mixed(key, names)
    return _numbered_ids(ids, key)


def batch_sizes(batch: Any, key: str | int) -> list[int]:
    """Return the sizes of the batches of several dataloaders, 0 for exhausted ones; empty if this is one batch."""
    several = batches_in(batch, key)
    if several is None:
        return []
    loaders = batch if isinstance(batch, Mapping) else range(len(batch))
    return [len(_value_of(several[loader], key)) if loader in several else 0 for loader in loaders]


def batches_in(batch: Any, key: str | int) -> dict[Any, Any] | None:
    """Return the batches of several dataloaders by their key or index; None if this is one batch.

    Those of exhausted dataloaders are left out.

    Args:
        key: The key of the examples' ids.
    """
    if _has(batch, key):
        items: dict[Any, Any] = {}
    elif isinstance(batch, Mapping):
        items = dict(batch)
    else:
        items = dict(enumerate(batch)) if isinstance(batch, list | tuple) else {}
    batches = {loader: of_loader for loader, of_loader in items.items() if of_loader is not None}
    return batches if batches and all(_has(of_loader, key) for of_loader in batches.values()) else None


def _value_of(batch: Any, key: str | int) -> Any:
    """Return the value of a batch under a key, or of its attribute of that name."""
    try:
        return batch[key]
    except (KeyError, TypeError, IndexError):
        if isinstance(batch, Mapping) or not isinstance(key, str):
            raise
        return getattr(batch, key)


def _has(batch: Any, key: str | int) -> bool:
    if isinstance(batch, Mapping):
        return key in batch
    return isinstance(key, str) and not isinstance(batch, Tensor) and hasattr(batch, key)


def _missing(batch: Any, key: str | int, option: str) -> str:
    """Write the message for a batch without ids."""
    is_named = isinstance(batch, Mapping)
    found = f"keys {list(batch)}" if is_named else f"a {type(batch).__name__}"
    given = ["dataset"] if key == "example_id" else ["dataset", f'key="{key}"']
    given += [] if is_named else ['names=("x", "y")']
    return (
        f'batch has no "{key}": found {found}. Add ids with ftrace.data.WithExampleIds({", ".join(given)}), or pass '
        f"{option}=..."
    )


def _mixed(key: str | int, names: Mapping[int, str]) -> ValueError:
    return ValueError(
        f'batch["{key}"]: expected names, such as {next(iter(names.values()))!r}, in all batches, found numbers. Give '
        "all ids as names, such as [str(id) for id in ids.tolist()], or all as numbers"
    )


def _named_ids(ids: Any, key: str | int, names: dict[int, str] | None) -> Tensor:
    expected = f'batch["{key}"]: expected integers of shape [B] or a list of names, found'
    if isinstance(ids, str):
        raise ValueError(f"{expected} the text {ids!r:.60}. Give a list of names, one for each example")
    if isinstance(ids, bytes) or any(isinstance(name, bytes) for name in ids):
        raise ValueError(f"{expected} bytes, {ids!r:.60}. Make them text: [id.decode() for id in ids]")
    if not all(isinstance(name, str) for name in ids):
        raise ValueError(f"{expected} {ids!r:.60}. Give all ids as names, or all as numbers")
    known = {} if names is None else names
    numbers = [stable_id(name) for name in ids]
    for number, name in zip(numbers, map(str, ids), strict=True):
        if known.setdefault(number, name) != name:
            raise ValueError(
                f'batch["{key}"]: expected another number for each name, found {number} for {known[number]!r} and for '
                f"{name!r}. Rename one of them"
            )
    return torch.tensor(numbers, dtype=torch.int64)


def _numbered_ids(ids: Any, key: str | int) -> Tensor:
    expected = f'batch["{key}"]: expected integers of shape [B] or a list of names, found'
    if isinstance(ids, Sequence) and all(isinstance(id_, Integral) and not isinstance(id_, bool) for id_ in ids):
        ids = list(map(int, ids))
        large = [number for number in ids if not -(2**63) <= number < 2**63]
        if large:
            raise _too_large(key, large[0], "ids")
    try:
        numbers = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{expected} {ids!r:.60}. Give each example one whole number, or one name") from error
    seen = f"{expected} {numbers.dtype} {tuple(numbers.shape)}"
    if numbers.is_floating_point():
        raise ValueError(f'{seen}. Make them whole numbers: ids.long(), or of an array or a column ids.astype("int64")')
    if numbers.is_complex() or numbers.dtype == torch.bool:
        raise ValueError(f"{seen}. Number the rows of the data set, not of the batch")
    if numbers.ndim != 1:
        is_column = numbers.ndim == 0 or numbers.numel() == len(numbers)
        raise ValueError(f"{seen}. {'Flatten them: ids.reshape(-1)' if is_column else 'Give each example one id'}")
    signed = numbers.long()
    if numbers.dtype == torch.uint64 and (signed < 0).any():
        raise _too_large(key, int(signed[signed < 0][0]) + 2**64, "ids.tolist()")
    return signed


def _too_large(key: str | int, found: int, ids: str) -> ValueError:
    shown = str(found) if abs(found) < 10**40 else "a longer one"
    return ValueError(
        f'batch["{key}"]: expected whole numbers from -2^63 to 2^63 - 1, found {shown}. Give them as names: '
        f"[str(id) for id in {ids}]"
    )


def _refuse_a_share(loader: DataLoader) -> None:
    """Refuse a loader that gives each process other queries."""
    if isinstance(loader.sampler, DistributedSampler) and loader.sampler.num_replicas > 1:
        raise ValueError(
            f"queries: expected all of them in each process, found a loader with {type(loader.sampler).__name__}, "
            "which gives each process a share. Pass a DataLoader without it, not of fabric.setup_dataloaders"
        )


@contextmanager
def _random_state_of(loader: Any) -> Iterator[None]:
    """Restore the state of the generators that a DataLoader or its sampler has."""
    attributes = [getattr(owner, "generator", None) for owner in (loader, getattr(loader, "sampler", None))]
    generators = [generator for generator in attributes if isinstance(generator, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
