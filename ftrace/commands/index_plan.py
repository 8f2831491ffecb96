"""What a gradient index takes, by rates that are measured here: ``ftrace index --plan``."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import torch

from ftrace.attribution import Task, measured
from ftrace.attribution.index_pass import covered_names, preconditioners_at
from ftrace.console import PlainConsole, PlainTable
from ftrace.files.whole_files import temporary_folder
from ftrace.index import (
    GradientFeatures,
    GradientRows,
    IndexPlan,
    IndexSettings,
    Rows,
    Shard,
    as_dtype,
    moved_like,
    write_shard,
)
from ftrace.models import Output

_MEASURED_SECONDS = 5.0


def make_plan(
    task: Task,
    snapshot: Path,
    settings: IndexSettings,
    output: Output,
    examples: int,
    hours: float,
    seconds: float = _MEASURED_SECONDS,
) -> IndexPlan:
    """Measure for some seconds how fast rows are made, written and read here, and plan an index of a corpus.

    Args:
        task: The run's examples.
        snapshot: The snapshot's folder.
        settings: What the index is.
        output: What is differentiated.
        examples: Of how many examples the planned index is.
        hours: Within which it is to be written.
        seconds: How long to measure.
    """
    if task.accelerator == "gpu" or (task.accelerator == "auto" and torch.cuda.is_available()):
        device = torch.device("cuda")
    else:
        device = torch.device("cpu")
    model = task.model_at(snapshot).to(device)
    names = covered_names(model, settings)
    like = next(model.parameters())
    preconditioners = moved_like(preconditioners_at(snapshot, model, settings), like)
    features = GradientFeatures(settings.features, names, preconditioners)
    rows_of = GradientRows(model, features, measured(output))
    size = task.batch_size or task.data.batch_size
    collate = task.data.example_dataloader().collate_fn
    count, measured_seconds, made = 0, 0.0, torch.empty(0)
    for start in itertools.count(0, size):
        rows = task.example_rows(start % len(task.examples), start % len(task.examples) + size)
        began = time.perf_counter()
        batch = {name: tensor.to(device) for name, tensor in collate(rows).items()}
        made = rows_of(batch)[0].cpu()
        if start:  # the first warms up
            count, measured_seconds = count + len(made), measured_seconds + time.perf_counter() - began
        if measured_seconds > seconds:
            break
    write_rate, read_rate = _disk_rates(task.output_dir, made, settings)
    return IndexPlan(
        examples, features.size, len(features.blocks), settings, count / measured_seconds, write_rate, read_rate, hours
    )


def _disk_rates(folder: Path, rows: torch.Tensor, settings: IndexSettings) -> tuple[float, float]:
    """Measure how many bytes a second are written and read where the index is to be."""
    copies = max(1, 2**26 // max(1, rows.nbytes))
    many = rows.repeat(copies, 1)
    ids = torch.arange(len(many))
    with temporary_folder(folder) as temporary:
        file = temporary / "shard-0.safetensors"
        began = time.perf_counter()
        write_shard(file, Rows(many, ids, torch.ones(len(many)), torch.zeros_like(ids)), as_dtype(settings.dtype))
        written = time.perf_counter()
        Shard(file).check()
        read = time.perf_counter()
        size = file.stat().st_size
    return size / (written - began), size / (read - written)


def show_plan(plan: IndexPlan) -> None:
    """Print a plan."""
    table = PlainTable(show_header=False, box=None, padding=(0, 2, 0, 0))
    for what, value in plan.lines():
        table.add_row(what, value)
    PlainConsole().print(table)
