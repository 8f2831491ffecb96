"""``ftrace index``: the gradients of a corpus at one snapshot, on disk, to be searched later."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from ftrace.arguments import Count, Name, Positive, PositiveNumber, checked
from ftrace.commands.endings import kept
from ftrace.commands.free_cores import use_free_cores
from ftrace.commands.options import ProcessSettings, add_old_names, add_trust, number_of_bytes, take
from ftrace.console import PlainConsole
from ftrace.files.snapshot_files import SnapshotFiles
from ftrace.index import OLD_OPTIONS, FeatureSettings, IndexSettings, PreconditionerKind, readable
from ftrace.launched_processes import is_first_process
from ftrace.models import Output
from ftrace.renamed import use_new_names
from ftrace.run_folder import newest_run
from ftrace.runs import Run

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
    from ftrace.attribution import Task, index_corpus  # these import torch
    from ftrace.commands.index_corpus import check_index, corpus_of, left_out
    from ftrace.commands.index_plan import make_plan, show_plan
    from ftrace.index import GradientIndex

    if check and output_dir:
        check_index(GradientIndex(output_dir))
        return
    data = of_run.data if corpus is None else corpus_of(of_run, corpus)
    base = Task(
        data, of_run.folder, of_run.snapshots, of_run.model_at, run_dir=of_run.folder, batch_size=batch_size,
        **asdict(processes),
    )  # fmt: skip
    (at,) = base.choose_snapshots(snapshot)
    folder = Path(output_dir) if output_dir else of_run.folder / f"index-{at.name}"
    if check:
        check_index(GradientIndex(folder))
        return
    use_free_cores()
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
    seconds, total = time.perf_counter() - started, sum(file.stat().st_size for file in folder.glob("segment-*/*"))
    if not is_first_process():
        return
    PlainConsole().print(
        f"Wrote {made.num_rows:,} rows of {made.size:,} numbers in {len(made.blocks)} blocks "
        f"({readable(total)}, preconditioner: {settings.features.preconditioner}) to {folder} in {seconds:,.0f} "
        f"seconds. Left out: {left_out(made)}",
        soft_wrap=True,
    )


def settings_at(snapshot: Path, settings: IndexSettings) -> IndexSettings:
    """Return settings by which gradients are left as they are if a snapshot has no second moments."""
    if SnapshotFiles(snapshot).has_second_moments:
        return settings
    return replace(settings, features=replace(settings.features, preconditioner="none"))
