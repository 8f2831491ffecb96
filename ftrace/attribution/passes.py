"""Passes of a model over all examples, under Lightning: by one or several processes, block by block, resumable."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from ftrace.attribution.method import AttributionMethod
from ftrace.attribution.partial_scores import Block, BlockRange, PartialScores
from ftrace.attribution.task import Row, Task, peak_memory_bytes
from ftrace.index import snapshot_fingerprint
from ftrace.launched_processes import ending_launched, interrupt_at_once
from ftrace.models.prediction_progress import PredictionProgress
from ftrace.scores import ScoreStore, ScoreWriter, Sum

BLOCK = 1024  # examples whose scores are kept together: the most that is computed again after a kill

Batch = dict[str, Tensor]
Scorer = Callable[[Batch], Mapping[Sum, Tensor]]


@dataclass(frozen=True)
class Pass:
    """A pass over all examples. The scores of passes for the same queries are summed.

    Args:
        first: The first query's position.
        last: One past the last query's position.
        begin: Prepares the queries on a device and returns the function that scores a batch: for each matrix
            ``[B, queries]``. It is called when the pass begins, so that only one pass's queries are in memory.
    """

    first: int
    last: int
    begin: Callable[[torch.device], Scorer]


def score_in_passes(
    method: AttributionMethod,
    task: Task,
    passes: Sequence[Pass],
    collate: Callable[[list[Row]], Batch],
    facts: Mapping[str, Any],
) -> ScoreStore:
    """Run passes over the task's examples and write the store.

    Scores don't depend on the number of processes, on the batch size, or on whether the command was killed and repeated
    in between, beyond rounding.

    Args:
        method: The method, for the manifest.
        task: What to score.
        passes: Each query's passes one after the other.
        collate: From training rows to a batch.
        facts: More for the manifest.

    Raises:
        ValueError: If what an earlier command left unfinished is of other settings, or another process works there.
    """
    with task.claim(method):
        partial = PartialScores(task.output_dir, _settings(method, task, passes))
        if not getattr(rank_zero_only, "rank", 0):
            partial.begin()
        try:
            trainer = predict(_Scoring(task, passes, partial, collate), task)
            if trainer.is_global_zero:
                _write(method, task, passes, partial, facts)
        except BaseException:
            if not getattr(rank_zero_only, "rank", 0):
                partial.remove_without_work()
            raise
        trainer.strategy.barrier()
    return ScoreStore.open(task.output_dir)


def predict(module: LightningModule, task: Task) -> Trainer:
    """Run a module's prediction on the task's devices, by its processes, and show how far the first one is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")  # rows are in memory
        warnings.filterwarnings("ignore", ".*across ranks is zero.*")  # nothing is left to be done
        trainer = Trainer(
            accelerator=task.accelerator,
            devices=task.devices,
            strategy=task.strategy,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            callbacks=[PredictionProgress("batches of examples")],
            use_distributed_sampler=False,
            inference_mode=False,  # gradients are methods' own affair
        )
        with ending_launched(trainer):
            trainer.predict(module, return_predictions=False)
            trainer.strategy.barrier()  # the first process reads what all have written
    return trainer


class _Item(NamedTuple):
    """A batch of work."""

    of_pass: int
    passes_before: int
    block_range: BlockRange
    start: int
    stop: int
    ends_block: bool


class ExampleRange(Protocol):
    """A range of a task's examples."""

    @property
    def start(self) -> int:
        """The first example's position."""

    @property
    def stop(self) -> int:
        """One past the last example's position."""


class ExampleBatches(Dataset):
    """Batches of a task's examples, one for each range.

    Args:
        task: Whose examples.
        collate: From rows to a batch.
    """

    def __init__(self, items: Sequence[ExampleRange], task: Task, collate: Callable[[list[Row]], Batch]) -> None:
        self.items = items
        self.task = task
        self.collate = collate

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Batch:
        item = self.items[index]
        return self.collate(self.task.example_rows(item.start, item.stop))


class _Scoring(LightningModule):
    """The prediction module that does this process's part of the work; passes load the models that they need."""

    def __init__(
        self, task: Task, passes: Sequence[Pass], partial: PartialScores, collate: Callable[[list[Row]], Batch]
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a process may find all its work done
        self.task = task
        self.passes = passes
        self.partial = partial
        self.collate = collate
        self._begun = -1
        self._scorer: Scorer | None = None
        self._open: list[dict[Sum, np.ndarray]] = []

    @override
    def predict_dataloader(self) -> DataLoader:
        self.items = self._my_items()
        return DataLoader(ExampleBatches(self.items, self.task, self.collate), batch_size=None)

    def _my_items(self) -> list[_Item]:
        """List the batches of this process's blocks: which are its own depends on their numbers alone."""
        total, done, items = len(self.task.examples), self.partial.passes_done(), []
        size = self.task.batch_size or self.task.data.batch_size
        for index, current in enumerate(self.passes):
            before = sum(other.first == current.first for other in self.passes[:index])
            for block in range(self.global_rank, -(-total // BLOCK), self.trainer.world_size):
                block_range = BlockRange(current.first, current.last, block)
                if done.get(block_range, 0) > before:
                    continue
                end = min((block + 1) * BLOCK, total)
                for start in range(block * BLOCK, end, size):
                    stop = min(start + size, end)
                    items.append(_Item(index, before, block_range, start, stop, stop == end))
        return items

    @override
    def on_predict_start(self) -> None:
        interrupt_at_once(self.trainer)
        self._since = self.task.started

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> int:
        item = self.items[batch_idx]
        if item.of_pass != self._begun:
            self._scorer = None  # its memory is needed
            self._scorer = self.passes[item.of_pass].begin(self.device)
            self._begun = item.of_pass
        assert self._scorer is not None
        scored = {key: scores.detach().cpu() for key, scores in self._scorer(batch).items()}
        self._open.append({key: (s if s.dtype == torch.float64 else s.float()).numpy() for key, s in scored.items()})
        if item.ends_block:
            keys = list(self._open[0])
            scores = {key: np.concatenate([of_batch[key] for of_batch in self._open]) for key in keys}
            self._open.clear()
            seconds = time.perf_counter() - self._since
            self._since += seconds
            self.partial.add(
                item.block_range, item.passes_before, Block(scores, seconds, peak_memory_bytes(self.device))
            )
        return item.stop - item.start

    @override
    def on_predict_end(self) -> None:
        self._scorer = None


def _write(
    method: AttributionMethod, task: Task, passes: Sequence[Pass], partial: PartialScores, facts: Mapping[str, Any]
) -> None:
    """Write one store of all blocks, through a memory map."""
    started = time.perf_counter()
    counts = Counter((queries.first, queries.last) for queries in passes)
    blocks = range(-(-len(task.examples) // BLOCK))
    ranges = [(BlockRange(first, last, block), count) for (first, last), count in counts.items() for block in blocks]
    first_scores = partial.read(*ranges[0]).scores
    dtype = np.result_type(np.float32, *first_scores.values())
    seconds, peak = 0.0, 0
    with ScoreWriter(task.output_dir, task.examples, task.queries, list(first_scores), dtype) as writer:
        for block_range, count in ranges:
            block = partial.read(block_range, count)
            rows = slice(block_range.block * BLOCK, (block_range.block + 1) * BLOCK)
            for key, values in block.scores.items():
                writer.put(key, values, rows, slice(block_range.first, block_range.last))
            seconds, peak = seconds + block.seconds, max(peak, block.peak_memory_bytes)
            if block_range.block == blocks[-1]:
                writer.flush()
        seconds += time.perf_counter() - started
        measured = {"seconds": round(seconds, 3), "peak_memory_bytes": peak}
        writer.finish({**task.describe(method), **facts, **measured}, *task.texts())
    partial.remove()


def _settings(method: AttributionMethod, task: Task, passes: Sequence[Pass]) -> dict[str, Any]:
    """Describe all that the scores in an unfinished folder depend on, so that two commands can be compared."""
    described = task.describe(method)
    return {
        **{key: described[key] for key in ("method", "class", "options")},
        "data": task.data.fingerprint,
        "snapshots": {folder.name: snapshot_fingerprint(folder) for folder in task.snapshots},
        "examples": _hash(task.examples),
        "queries": _hash(task.queries),
        "examples of a block": BLOCK,
        "queries of a pass, by memory_budget": sorted({(queries.first, queries.last) for queries in passes}),
    }


def _hash(ids: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(ids).tobytes()).hexdigest()[:16]
