"""One pass over a corpus that writes a gradient index: by one or several processes, shard by shard, resumable."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from ftrace.attribution.passes import ExampleBatches, predict
from ftrace.attribution.preconditioners_of_snapshots import snapshot_preconditioners
from ftrace.attribution.task import Task
from ftrace.files.claims import claimed
from ftrace.files.snapshot_files import SnapshotFiles
from ftrace.gradients import GradientCapture, Preconditioner
from ftrace.index import (
    GradientFeatures,
    GradientIndex,
    GradientRows,
    IndexSettings,
    Rows,
    as_dtype,
    begin_index,
    block_weights,
    close_segment,
    moved_like,
    preconditioner_for_index,
    snapshot_fingerprint,
    write_examples,
    write_preconditioners,
    write_shard,
)
from ftrace.index.segment_facts import SEGMENT
from ftrace.launched_processes import interrupt_at_once
from ftrace.models import FactLM, Output


def measured(output: Output, answers: Literal["one", "any"] | None = None) -> Callable[[FactLM, Any], Tensor]:
    """Make the function whose outputs are differentiated.

    Args:
        output: "loss", "margin" or "logit".
        answers: What a query's loss is; default: as the run's.
    """

    def of_batch(model: FactLM, batch: Any) -> Tensor:
        if answers is not None:
            model.hparams["answers"] = answers
        return model.example_outputs(batch, output)

    return of_batch


def answer_lengths(model: FactLM, batch: Any) -> Tensor:
    """Return the numbers of tokens of queries' answers, ``[B]``."""
    return model.answer_lengths(batch)


def covered_names(model: FactLM, settings: IndexSettings) -> list[str]:
    """List the parameters that an index covers, in the model's order.

    Raises:
        ValueError: If one can't be covered, or there is none.
    """
    patterns = settings.features.parameters or tuple(block_weights(model))
    coverage = GradientCapture(model, patterns, strict=True).coverage
    if not coverage.covered:
        raise ValueError(f"parameters: expected at least one to be trained. {coverage.summary()}")
    return list(coverage.covered)


def preconditioners_at(snapshot: Path, model: FactLM, settings: IndexSettings) -> dict[str, Preconditioner]:
    """Read what an index multiplies gradients with at a snapshot, in the model's precision.

    Raises:
        ValueError: If the snapshot has no second moments.
    """
    kind = settings.features.preconditioner
    if kind == "none":
        return {}
    of_optimizer = snapshot_preconditioners(snapshot, model, "preconditioner none")
    return {name: preconditioner_for_index(factor, kind) for name, factor in of_optimizer.items()}


def index_corpus(
    task: Task,
    snapshot: Path,
    settings: IndexSettings = IndexSettings(),  # noqa: B008 - frozen
    output: Output = "loss",
    facts: Mapping[str, Any] | None = None,
) -> GradientIndex:
    """Write the index of a task's examples at one snapshot, or continue one that is unfinished.

    Args:
        task: The examples, and the folder of the index as its ``output_dir``.
        snapshot: The snapshot's folder.
        settings: How.
        output: What is differentiated. With "margin", rows are weighted by 1 - p, as TRAK weighs them, where p is the
            probability of the example's target.
        facts: More for the manifest.

    Raises:
        ValueError: If the folder holds something else, or an index of other settings, or another process works there.
    """
    with claimed(task.output_dir, "ftrace index", by_this_process=not getattr(rank_zero_only, "rank", 0)):
        return _index_corpus(task, snapshot, settings, output, facts or {})


def _index_corpus(
    task: Task, snapshot: Path, settings: IndexSettings, output: Output, facts: Mapping[str, Any]
) -> GradientIndex:
    model = task.model_at(snapshot)
    names = covered_names(model, settings)
    described = {
        **facts,
        "written_by": "ftrace index",
        "output": output,
        "data": task.data.fingerprint,
        "examples": {"count": len(task.examples), "ids": hashlib.sha256(task.examples.tobytes()).hexdigest()[:16]},
        "snapshots": {snapshot.name: snapshot_fingerprint(snapshot)},
    }
    preconditioners = preconditioners_at(snapshot, model, settings)  # raises errors before anything is written
    begin_index(task.output_dir, settings, model, names, described)
    step = int(SnapshotFiles(snapshot).facts["step"])
    folder = task.output_dir / f"segment-{step:08d}"
    if not (folder / SEGMENT).exists():
        write_preconditioners(folder, preconditioners)
    features = GradientFeatures(settings.features, names, preconditioners)
    del model
    trainer = predict(_Indexing(task, snapshot, folder, settings, features, output), task)
    if trainer.is_global_zero and not (folder / SEGMENT).exists():
        relative = os.path.relpath(snapshot.resolve(), task.output_dir.resolve())
        of_segment = {"step": step, "snapshot": relative, "fingerprint": snapshot_fingerprint(snapshot)}
        write_examples(task.output_dir, task.texts()[0])
        close_segment(folder, list(features.blocks), of_segment, settings.sample, settings.features.seed)
    trainer.strategy.barrier()
    return GradientIndex(task.output_dir)


class _Item(NamedTuple):
    """One batch of work."""

    shard: int
    start: int
    stop: int
    ends_shard: bool


class _Indexing(LightningModule):
    """The prediction module that writes this process's shards; it loads the model when it begins."""

    def __init__(
        self,
        task: Task,
        snapshot: Path,
        folder: Path,
        settings: IndexSettings,
        features: GradientFeatures,
        output: Output,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # all of a process's work may be done already
        self.task = task
        self.snapshot = snapshot
        self.folder = folder
        self.settings = settings
        self.features = features
        self.output: Output = output
        self._rows: GradientRows | None = None
        self._model: Any = None
        self._open: list[tuple[Tensor, Tensor]] = []

    @override
    def predict_dataloader(self) -> DataLoader:
        self.items = self._my_items()
        collate = self.task.data.example_dataloader().collate_fn
        return DataLoader(ExampleBatches(self.items, self.task, collate), batch_size=None)

    def _file(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:08d}.safetensors"

    def _my_items(self) -> list[_Item]:
        """List the batches of this process's shards: which are its own depends on their numbers alone."""
        rows, total = self.settings.rows_of_shard(self.features.size), len(self.task.examples)
        size, items = self.task.batch_size or self.task.data.batch_size, []
        for shard in range(self.global_rank, -(-total // rows), self.trainer.world_size):
            if self._file(shard).exists():
                continue
            end = min((shard + 1) * rows, total)
            for start in range(shard * rows, end, size):
                stop = min(start + size, end)
                items.append(_Item(shard, start, stop, stop == end))
        return items

    @override
    def on_predict_start(self) -> None:
        interrupt_at_once(self.trainer)
        if not self.items:
            return
        self._model = model = self.task.model_at(self.snapshot).to(self.device)
        preconditioners = moved_like(self.features.preconditioners, next(model.parameters()))
        features = GradientFeatures(self.settings.features, self.features.names, preconditioners)
        self._rows = GradientRows(model, features, measured(self.output))

    @override
    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> int:
        item = self.items[batch_idx]
        assert self._rows is not None
        rows, outputs = self._rows(dict(batch))
        weights = torch.ones_like(outputs)
        if self.output == "margin":
            with torch.no_grad():
                weights = 1 - torch.exp(-measured("loss")(self._model, batch))
        self._open.append((rows.cpu(), weights.cpu()))
        if item.ends_shard:
            first = item.stop - sum(len(rows) for rows, _ in self._open)
            ids = torch.from_numpy(self.task.examples[first : item.stop].copy())
            parts = list(zip(*self._open, strict=True))
            given = Rows(torch.cat(parts[0]), ids, torch.cat(parts[1]), torch.zeros_like(ids))
            self._open.clear()
            write_shard(self._file(item.shard), given, as_dtype(self.settings.dtype))
        return item.stop - item.start

    @override
    def on_predict_end(self) -> None:
        self._rows = self._model = None
