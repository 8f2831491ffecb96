"""What a training loop says before it begins: how many examples, batches and epochs there will be at most."""

from __future__ import annotations

import math

from torch.utils.data import DataLoader

from ftrace.online.loop import TrainingLoop


def planned_examples(loop: TrainingLoop) -> int | None:
    """Return the number of examples that this process will see at most; None if that isn't known."""
    planned = loop.train_loaders
    if not planned.loaders or not planned.are_all:
        return None
    rows = sum(_rows(loader) for loader in planned.loaders)
    drawn = planned.batches * batch_size(loop) if planned.batches else 0
    count = min(rows, drawn)
    return None if count == math.inf else int(count)


def batch_size(loop: TrainingLoop) -> float:
    """Return the number of examples in a batch; infinity if that isn't known."""
    return sum(_batch_size(loader) for loader in loop.train_loaders.loaders) or math.inf


def _rows(loader: DataLoader) -> float:
    try:
        return len(loader.dataset)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):  # an iterable data set need not know
        return math.inf


def _batch_size(loader: DataLoader) -> float:
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    return size if isinstance(size, int) else math.inf
