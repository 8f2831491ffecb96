"""The check for ids that several examples share, whose scores would silently be added up.

There are two signs of such ids: when training starts, two data sets that give different rows the same ids; and later,
an id that is seen twice in an epoch in which each row is drawn once. An example may be seen again if its row is drawn
again: in the next epoch, by samplers with replacement or of several processes, or if a loader has the same row twice.
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
from ftrace.online.sorted_ids import SortedIds


class RepeatedIds:
    """The check of a run for ids that several examples share.

    Args:
        loop: The training loop, about to train.
        key: The key of the examples' ids in a batch.
        strict: Whether such ids are an error; otherwise a warning.
        shared: Whether several rows may have the same id, so that nothing is checked.

    Raises:
        ValueError: When strict, if two data sets give different rows the same ids.
    """

    def __init__(self, loop: TrainingLoop, key: str | int, *, strict: bool, shared: bool = False) -> None:
        self._loop = loop
        self._key = key
        self._strict = strict
        self._shared = shared
        self._has_numbers = False
        self._epoch = -1
        self._loaders: list[DataLoader] = []
        self._batches_of_rows_once = 0
        self._seen = SortedIds()
        problem = _collision([loader.dataset for loader in loop.train_loaders.loaders], key)
        if problem is not None and not shared:
            self._tell(problem)

    def check(self, ids: Tensor, names: Mapping[int, str]) -> None:
        """Check the ids of a batch.

        Args:
            ids: The batch's ids, ``[B]``.
            names: By number, the names of ids that were made from names, of this batch and all earlier ones.

        Raises:
            ValueError: When strict, if an id was seen in this epoch before, though the loader draws each row once; or
                if some ids are names and others are numbers.
        """
        if names and self._has_numbers:
            raise ValueError(
                f'batch["{self._key}"]: expected numbers, as in earlier batches, found names, such as '
                f"{next(iter(names.values()))!r}. Give all ids as names, such as [str(id) for id in ids.tolist()], "
                "or all as numbers"
            )
        self._has_numbers = not names
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
        repeated = np.concatenate([repeated, of_batch[self._seen.contain(of_batch)]])
        self._seen.add(of_batch)
        if len(repeated):
            self._batches_of_rows_once = 0  # one warning is enough
            first = int(repeated[0])
            self._tell(
                f'batch["{self._key}"]: expected an id for each row of the data, found {names.get(first, first)!r} '
                f"twice in epoch {self._epoch}, though the loader draws each row once. Number the rows of all data "
                "together, WithExampleIds(ConcatDataset([a, b])), or apart, WithExampleIds(b, first=len(a)), not those "
                "of each batch. If they are pieces of one example, pass shared_ids=True"
            )

    def _begin_epoch(self) -> None:
        self._epoch = self._loop.epoch
        self._seen = SortedIds()
        loaders = list(self._loop.train_loaders.loaders)
        if list(map(id, loaders)) != list(map(id, self._loaders)):
            self._loaders = loaders
            self._batches_of_rows_once = _batches_of_rows_once(self._loop.train_loaders)

    def _tell(self, problem: str) -> None:
        if self._strict:
            raise ValueError(problem)
        warn(f"{problem}. Scores of rows with the same id are added up")


def _batches_of_rows_once(train: TrainLoaders) -> int:
    """Return the number of batches, from the start of an epoch, in which each row is drawn at most once."""
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
    """Return how many rows a batch is made of; 0 where data sets return ready-made batches, so that it isn't known."""
    if any(loader.batch_size is None for loader in loaders):
        return 0
    sizes = [(loader.batch_size or 0, len(loader.sampler)) for loader in loaders]  # type: ignore[arg-type]
    return sum(min(size, max(0, total - batch_idx * size)) for size, total in sizes)


def _has_rows_twice(datasets: Sequence[Any]) -> bool:
    """Whether several indices draw the same row, so that the same example may be seen again."""
    rows_of_leaves: dict[Any, list[np.ndarray | None]] = {}
    for dataset in datasets:
        for leaf, rows in _leaves(dataset):
            identity = (id(leaf.dataset), leaf.ids) if _is_numbered(leaf) else id(leaf)
            rows_of_leaves.setdefault(identity, []).append(rows)
    for of_leaf in rows_of_leaves.values():
        parts = [rows for rows in of_leaf if rows is not None]
        if len(parts) < len(of_leaf):
            if len(of_leaf) > 1:
                return True  # all rows, and some or all of them twice
        elif len(np.unique(np.concatenate(parts))) < sum(map(len, parts)):
            return True
    return False


def _leaves(dataset: Any, rows: np.ndarray | None = None) -> Iterator[tuple[Any, np.ndarray | None]]:
    """Yield the data sets that a data set is made of, and the indices of the rows of each that it has; None: all."""
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
    """Whether a data set numbers its rows, as ``ftrace.data.WithExampleIds`` does, which has the range of the ids."""
    return isinstance(getattr(dataset, "ids", None), range) and hasattr(dataset, "key") and hasattr(dataset, "dataset")


def _collision(datasets: Sequence[Any], key: str | int) -> str | None:
    """Write the message on two data sets that give different rows the same ids; None if there are none."""
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
