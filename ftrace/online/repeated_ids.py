"""Ids that stand for several examples, whose scores would be added up without a word.

There are two signs of them: when training starts, two data sets that number their rows alike; and later, an id that
comes again in an epoch in which each row is drawn once. An example may come again wherever its row is drawn again: in
the next epoch, by samplers with replacement or of several processes, or because a loader has the same rows twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, RandomSampler, SequentialSampler, Subset

from ftrace.online.loop import TrainingLoop, TrainLoaders
from ftrace.online.messages import warn
from ftrace.online.processes import num_processes


class RepeatedIds:
    """Refuses ids that stand for several examples.

    Args:
        loop: The training loop, about to train.
        key: The batch's key of the examples' ids.
        strict: Whether such ids are an error; otherwise a warning.
        shared: Whether several rows may have one id, so that there is nothing to say.

    Raises:
        ValueError: If two data sets number their rows alike, and ``strict``.
    """

    def __init__(self, loop: TrainingLoop, key: str, *, strict: bool, shared: bool = False) -> None:
        self._loop = loop
        self._key = key
        self._strict = strict
        self._shared = shared
        self._numbers_came = False
        self._epoch = -1
        self._loaders: list[DataLoader] = []
        self._batches_of_rows_once = 0
        self._seen = _SortedIds()
        problem = _collision([loader.dataset for loader in loop.train_loaders.loaders], key)
        if problem is not None and not shared:
            self._tell(problem)

    def see(self, ids: Tensor, names: Mapping[int, str]) -> None:
        """Note the ids of a batch.

        Args:
            ids: The batch's ids, ``[B]``.
            names: Names of the ids that were made from names, of this batch and all before it.

        Raises:
            ValueError: If an id came already in this epoch, though the loader draws each row once, and ``strict``; or
                if some ids are names and others are numbers.
        """
        if names and self._numbers_came:
            raise ValueError(
                f'batch["{self._key}"]: expected numbers, as in earlier batches, found names, such as '
                f"{next(iter(names.values()))!r}. Give all ids as names, such as [str(id) for id in ids.tolist()], "
                "or all as numbers"
            )
        self._numbers_came = not names
        if self._shared:
            return
        if self._loop.epoch != self._epoch:
            self._begin_epoch()
        batch_idx = self._loop.batch_idx
        if batch_idx >= self._batches_of_rows_once:
            return
        of_batch = np.sort(ids.cpu().numpy())
        repeated = of_batch[1:][of_batch[1:] == of_batch[:-1]]
        if len(repeated) and len(of_batch) > _rows_drawn(self._loaders, batch_idx):
            of_batch, repeated = np.unique(of_batch), repeated[:0]  # a batch may have several rows of an example
        repeated = np.concatenate([repeated, self._seen.add(of_batch)])
        if len(repeated):
            self._batches_of_rows_once = 0  # one warning will do
            first = int(repeated[0])
            self._tell(
                f'batch["{self._key}"]: expected an id for each row of the data, found {names.get(first, first)!r} '
                f"twice in epoch {self._epoch}, though the loader draws each row once. Number the rows of all data "
                "together, WithExampleIds(ConcatDataset([a, b])), or apart, WithExampleIds(b, first=len(a)), not those "
                "of each batch. If they are pieces of one example, pass shared_ids=True"
            )

    def _begin_epoch(self) -> None:
        self._epoch = self._loop.epoch
        self._seen = _SortedIds()
        loaders = list(self._loop.train_loaders.loaders)
        if list(map(id, loaders)) != list(map(id, self._loaders)):
            self._loaders = loaders
            self._batches_of_rows_once = _batches_of_rows_once(self._loop.train_loaders)

    def _tell(self, problem: str) -> None:
        if self._strict:
            raise ValueError(problem)
        warn(f"{problem}. Scores of these are added up")


class _SortedIds:
    """Ids, eight bytes each, in sorted arrays of which each is at least twice as long as the next."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def add(self, ids: np.ndarray) -> np.ndarray:
        """Add ids, ``[B]`` ascending; returns those that are there already."""
        is_known = np.zeros(len(ids), dtype=bool)
        for array in self._arrays:
            places = np.minimum(np.searchsorted(array, ids), len(array) - 1)
            is_known |= array[places] == ids
        if len(ids):
            self._arrays.append(ids)
        while len(self._arrays) > 1 and len(self._arrays[-2]) < 2 * len(self._arrays[-1]):
            last = self._arrays.pop()
            self._arrays[-1] = np.sort(np.concatenate([self._arrays[-1], last]), kind="stable")
        known: np.ndarray = ids[is_known]
        return known


def _batches_of_rows_once(train: TrainLoaders) -> int:
    """Count the batches at the beginning of an epoch that have each row at most once."""
    loaders = train.loaders
    if num_processes() > 1 or not loaders or not train.are_all:
        return 0
    if not all(map(_draws_once, loaders)) or _has_rows_twice([loader.dataset for loader in loaders]):
        return 0
    return min(map(len, loaders)) if train.restart else max(map(len, loaders))


def _draws_once(loader: DataLoader) -> bool:
    """Whether a loader's sampler gives each index of its data set at most once."""
    sampler: Any = loader.sampler
    if loader.batch_sampler is not None:
        if type(loader.batch_sampler) is not BatchSampler:
            return False
        sampler = loader.batch_sampler.sampler
    if type(sampler) is RandomSampler:
        return not sampler.replacement and sampler.num_samples <= len(sampler.data_source)
    return type(sampler) is SequentialSampler


def _rows_drawn(loaders: Sequence[DataLoader], batch_idx: int) -> int:
    """How many rows a batch is made of; 0 where whole batches are drawn."""
    if any(loader.batch_size is None for loader in loaders):
        return 0
    sizes = [(loader.batch_size or 0, len(loader.sampler)) for loader in loaders]  # type: ignore[arg-type]
    return sum(min(size, max(0, total - batch_idx * size)) for size, total in sizes)


def _has_rows_twice(datasets: Sequence[Any]) -> bool:
    """Whether a row can be drawn by several indices, so that it may come again as the example that it is."""
    places: dict[Any, list[np.ndarray | None]] = {}
    for dataset in datasets:
        for leaf, rows in _leaves(dataset):
            identity = (id(leaf.dataset), leaf.ids) if _is_numbered(leaf) else id(leaf)
            places.setdefault(identity, []).append(rows)
    for of_leaf in places.values():
        parts = [rows for rows in of_leaf if rows is not None]
        if len(parts) < len(of_leaf):
            if len(of_leaf) > 1:
                return True  # all rows, and some or all of them again
        elif len(np.unique(np.concatenate(parts))) < sum(map(len, parts)):
            return True
    return False


def _leaves(dataset: Any, rows: np.ndarray | None = None) -> Iterator[tuple[Any, np.ndarray | None]]:
    """The data sets that a data set is made of, and which of their rows it has; None: all."""
    if isinstance(dataset, Subset):
        indices = np.asarray(dataset.indices, dtype=np.int64) % len(dataset.dataset)  # type: ignore[arg-type]
        yield from _leaves(dataset.dataset, indices if rows is None else indices[rows])
    elif isinstance(dataset, ConcatDataset):
        start = 0
        for part, stop in zip(dataset.datasets, dataset.cumulative_sizes, strict=True):
            yield from _leaves(part, None if rows is None else rows[(rows >= start) & (rows < stop)] - start)
            start = stop
    else:
        yield dataset, rows


def _is_numbered(dataset: Any) -> bool:
    """Whether a data set gives its rows their ids, as ``ftrace.data.WithExampleIds`` does: it has their range."""
    return isinstance(getattr(dataset, "ids", None), range) and hasattr(dataset, "key") and hasattr(dataset, "dataset")


def _collision(datasets: Sequence[Any], key: str) -> str | None:
    """What to say of two data sets that number different rows alike; None without such."""
    known: list[tuple[Any, np.ndarray | range]] = []
    for leaf, rows in (leaf for dataset in datasets for leaf in _leaves(dataset)):
        if not _is_numbered(leaf) or leaf.key != key:
            continue
        ids = leaf.ids if rows is None else rows + leaf.ids.start
        for other, of_other in known:
            common = _common(ids, of_other)
            has_same_rows = leaf.dataset is other.dataset and leaf.ids == other.ids
            if len(common) and not has_same_rows:
                free = max(numbered.ids.stop for numbered, _ in [*known, (leaf, ids)])
                return (
                    f'two data sets number their rows alike: expected another "{key}" for each row, found '
                    f"{len(common)} ids in both, such as {int(common[0])}. Number them apart, WithExampleIds(b, "
                    f"first={free}), or in one loader together, WithExampleIds(ConcatDataset([a, b])), where a and b "
                    "have no ids yet. If they are pieces of the same examples, pass shared_ids=True"
                )
        known.append((leaf, ids))
    return None


def _common(first: np.ndarray | range, second: np.ndarray | range) -> np.ndarray | range:
    if isinstance(first, range) and isinstance(second, range):
        return range(max(first.start, second.start), min(first.stop, second.stop))
    return np.intersect1d(np.asarray(first), np.asarray(second))
