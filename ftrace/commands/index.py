"""``ftrace index``: the gradients of a corpus at one snapshot, on disk, to be searched later."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.utilities import rank_zero_only

from ftrace.arguments import Count, Name, Positive, PositiveNumber, checked
from ftrace.attribution import Task, index_corpus, measured
from ftrace.attribution.index_pass import covered_names, preconditioners_at
from ftrace.commands.endings import kept
from ftrace.commands.options import ProcessSettings, add_old_names, add_trust, number_of_bytes, take
from ftrace.console import PlainConsole, PlainTable
from ftrace.data import FactCorpus, FactData
from ftrace.files.snapshot_files import SnapshotFiles
from ftrace.files.whole_files import temporary_folder
from ftrace.index import (
    OLD_OPTIONS,
    FeatureSettings,
    GradientFeatures,
    GradientIndex,
    GradientRows,
    IndexPlan,
    IndexSettings,
    PreconditionerKind,
    Rows,
    Shard,
    as_dtype,
    moved_like,
    readable,
    write_shard,
)
from ftrace.models import Output
from ftrace.progress import track
from ftrace.renamed import use_new_names
from ftrace.run_folder import newest_run
from ftrace.runs import Run

_MEASURED_SECONDS = 5.0
_Preconditioner = Literal["auto"] | PreconditionerKind


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments: those of its settings as its own."""
    command.add_function_arguments(index, skip={"settings", "processes", "may_lack_moments", "trust"})
    add_trust(command)
    command.add_class_arguments(FeatureSettings, skip={"preconditioner"})
    command.add_argument(
        "--preconditioner", type=_Preconditioner, default="auto",
        help='What gradients are divided by: "rank-one", the root of the closest outer product to the optimizer\'s '
        'second moments; "elementwise", their root as it is, which forms each example\'s gradient of each weight; '
        '"none"; "auto", rank-one where the snapshot has second moments.',
    )  # fmt: skip
    command.add_class_arguments(IndexSettings, skip={"features", "shard_bytes"})
    command.add_argument(
        "--shard_bytes", type=int | str, default="256MiB",
        help='How large a file of rows becomes, about, such as "1GiB".',
    )  # fmt: skip
    command.add_class_arguments(ProcessSettings)
    add_old_names(command, {"side": int, "groups": int, "correction": _Preconditioner})


def command(**options: Any) -> None:
    """Write the gradient index of a corpus at one snapshot of a run; repeated after a kill, it continues."""
    defaults = {**asdict(FeatureSettings()), "preconditioner": "auto"}
    options = use_new_names("ftrace index", options, OLD_OPTIONS, defaults)
    may_lack_moments = options["preconditioner"] == "auto"
    if may_lack_moments:
        options["preconditioner"] = FeatureSettings.preconditioner
    options["shard_bytes"] = number_of_bytes("shard_bytes", options["shard_bytes"])
    settings = replace(take(IndexSettings, options), features=take(FeatureSettings, options))
    processes = take(ProcessSettings, options)
    index(**options, settings=settings, processes=processes, may_lack_moments=may_lack_moments)


@checked
def index(
    run: Name,
    snapshot: Literal["last", "first"] | Count = "last",
    output_dir: Name | None = None,
    corpus: list[Name] | None = None,
    settings: IndexSettings = IndexSettings(),  # noqa: B008
    output: Output = "loss",
    processes: ProcessSettings = ProcessSettings(),  # noqa: B008
    batch_size: Positive | None = None,
    plan: PositiveNumber | None = None,
    plan_hours: PositiveNumber = 24.0,
    check: bool = False,
    may_lack_moments: bool = False,
    trust: bool = False,
) -> None:
    """Write the gradient index of a corpus at one snapshot of a run; repeated after a kill, it continues.

    Args:
        run: The run's log folder, or the folder that its versions are in: the newest is taken.
        snapshot: "last", "first", or a step.
        output_dir: The index's folder; default: index-step-STEP in the run's.
        corpus: Files of examples, as FactCorpus reads training rows; default: the run's training rows.
        settings: What the index is.
        output: What is differentiated: "loss", "margin" or "logit".
        processes: Which processes share the work.
        batch_size: Examples of a batch; default: as the run's.
        plan: Write nothing; say what an index of so many examples takes, by rates that are measured for some seconds.
        plan_hours: Within which the planned index is to be written.
        check: Write nothing; read all of the index in OUTPUT_DIR, and check it against its checksums.
        may_lack_moments: Whether gradients at a snapshot without second moments are left as they are; otherwise that is
            an error.
        trust: Whether classes of the run's config that aren't ftrace's own are followed.
    """
    of_run = Run(newest_run(run), trust)
    if check and output_dir:
        check_index(GradientIndex(output_dir))
        return
    data: FactData = of_run.data if corpus is None else corpus_of(of_run, corpus)
    base = Task(
        data, of_run.folder, of_run.snapshots, of_run.model_at, run_dir=of_run.folder, batch_size=batch_size,
        **asdict(processes),
    )  # fmt: skip
    (at,) = base.choose_snapshots(snapshot)
    folder = Path(output_dir) if output_dir else of_run.folder / f"index-{at.name}"
    if check:
        check_index(GradientIndex(folder))
        return
    if may_lack_moments:
        settings = settings_at(at, settings)
    task = replace(base, output_dir=folder)
    if plan is not None:
        show_plan(make_plan(task, at, settings, output, int(plan), plan_hours))
        return
    started = time.perf_counter()
    facts = {
        "run": os.path.relpath(of_run.folder.resolve(), folder.resolve()),
        "corpus": None if corpus is None else [str(Path(file).absolute()) for file in corpus],
    }
    with kept(f"Finished shards are kept in {folder}; the same command goes on with them."):
        made = index_corpus(task, at, settings, output, facts)
    say = rank_zero_only(PlainConsole().print)
    seconds, total = time.perf_counter() - started, sum(file.stat().st_size for file in folder.glob("segment-*/*"))
    say(
        f"Wrote {made.num_rows:,} rows of {made.size:,} numbers in {len(made.blocks)} blocks "
        f"({readable(total)}, preconditioner: {settings.features.preconditioner}) to {folder} in {seconds:,.0f} "
        f"seconds. Left out: {_left_out(made)}",
        soft_wrap=True,
    )


def settings_at(snapshot: Path, settings: IndexSettings) -> IndexSettings:
    """Return settings by which gradients are left as they are if a snapshot has no second moments."""
    if SnapshotFiles(snapshot).has_second_moments:
        return settings
    return replace(settings, features=replace(settings.features, preconditioner="none"))


def _left_out(made: GradientIndex) -> str:
    names = made.manifest["left_out"]
    return f"{len(names)} parameters, such as {names[0]}" if names else "nothing"


def corpus_of(run: Run, files: list[str]) -> FactData:
    """Load another corpus in the tokens of a run's model, with the run's queries."""
    known = run.data
    settings = replace(
        known.settings, data_dir=str(known.data_path.parent), tokenizer=known.tokenizer_source, num_queries=None
    )
    data = FactCorpus(list(files), str(known.data_path / "queries.parquet"), **asdict(settings))
    data.prepare_data()
    data.setup()
    return data


def check_index(opened: GradientIndex) -> None:
    """Read all files, and check them against their digests.

    Raises:
        ValueError: If a file is damaged, by name.
    """
    count = sum(1 for _ in track(opened.checked_files(), "files checked"))
    PlainConsole().print(f"All {count} files of {opened.folder} are as they were written", soft_wrap=True)


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
