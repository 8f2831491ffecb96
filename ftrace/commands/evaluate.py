"""``ftrace evaluate``: score stores side by side, or files of retrieved proponents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jsonargparse import ArgumentParser

from ftrace.arguments import Name, Positive, checked
from ftrace.commands.evaluate_results import compare_results, names_of_results
from ftrace.commands.options import take
from ftrace.commands.query_choice import QueryChoice
from ftrace.commands.stores import add_stores, open_stores, open_stores_of_run
from ftrace.console import PlainConsole
from ftrace.evaluation.options import known_name
from ftrace.evaluation.queries import Half
from ftrace.evaluation.results.metrics import ResultsBy
from ftrace.evaluation.retrieval import (
    Evaluation,
    PoolSettings,
    WholeTrainingSet,
    breakdown,
    choose_best,
    evaluate,
    families,
    over_runs,
    published_for,
    render_breakdown,
    render_table,
    write_tables,
)
from ftrace.evaluation.retrieval.breakdowns import By
from ftrace.evaluation.stores import row_name
from ftrace.run_folder import newest_run
from ftrace.runs import Run
from ftrace.scores import ScoreStore, show_command


@checked
@dataclass(frozen=True)
class Protocol(QueryChoice):
    """The options that decide what is evaluated on what."""

    pool: Literal["all", "candidates"] = "all"
    """What examples are ranked among: "all" training examples, or "candidates": each query's candidate pool."""
    pools: PoolSettings = field(default_factory=PoolSettings)
    """How many candidates come from where."""
    level: Literal["row", "sentence"] | None = None
    """"row", or "sentence": variants of one sentence are one candidate. Default: "sentence" where the data knows its
    sentences."""


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments: several stores, several runs and several choices without brackets."""
    add_stores(
        command,
        "Or files of results (.jsonl, .jsonl.gz), to which only --precision_at, --against, --by, --seed and "
        "--output_dir apply.",
    )
    command.add_argument("--runs", nargs="+", type=str, help="Log folders of several runs, such as of several seeds.")
    command.add_argument(
        "--choose", nargs="+", type=str, metavar="[PATTERN:]METRIC",
        help="Choose the best of the rows that match PATTERN (default: of each store's kinds) by METRIC on the "
        "development half of the queries, and report on the other half.",
    )  # fmt: skip
    command.add_argument(
        "--precision_at", nargs="+", type=int, metavar="K",
        help="Of files of results: take the precision of the first K proponents (default: 1 10).",
    )  # fmt: skip
    command.add_class_arguments(Protocol)
    command.add_argument(
        "--by", type=By | ResultsBy | None,
        help='Also print the metrics by "relation", or by number of "proponents"; of files of results, by "query_set", '
        '"relation" or "c4_frequency_bucket".',
    )  # fmt: skip
    command.add_function_arguments(evaluate_stores, skip={"stores", "run", "runs", "choose", "protocol", "by", "trust"})


@checked
def command(stores: Sequence[Name], precision_at: Sequence[Positive] | None = None, **options: Any) -> None:
    """Compare score stores, or files of results: one table, all rows on the same queries."""
    protocol = take(Protocol, options)
    if names_of_results(stores):
        _hold_for_results(protocol, options)
        shared = {name: options[name] for name in ("against", "by", "output_dir")}
        compare_results(stores, precision_at, seed=protocol.seed, **shared)
        return
    if precision_at is not None:
        raise ValueError("precision_at: expected files of results, found score stores, which have P@k for fixed k")
    if options["by"] not in (None, *get_args(By)):
        raise ValueError(f"by: expected one of {list(get_args(By))} for score stores, found {options['by']!r}")
    evaluate_stores(stores, protocol, **options)


def _hold_for_results(protocol: Protocol, options: Mapping[str, Any]) -> None:
    """Refuse options that mean nothing for files of results.

    Raises:
        ValueError: If there are any.
    """
    defaults = Protocol(seed=protocol.seed)
    names = [field.name for field in fields(Protocol)]
    given = [name for name in names if getattr(protocol, name) != getattr(defaults, name)]
    given += [name for name in ("run", "runs", "choose", "half") if options[name]]
    if given:
        raise ValueError(f"{given[0]}: expected score stores, found files of results, to which it doesn't apply")


@checked
def evaluate_stores(
    stores: Sequence[Name],
    protocol: Protocol = Protocol(),
    run: Name | None = None,
    runs: Sequence[Name] | None = None,
    choose: Sequence[Name] | None = None,
    half: Half | None = None,
    against: Name | None = None,
    by: By | None = None,
    published: bool = True,
    output_dir: Name | None = None,
    trust: bool = False,
) -> None:
    """Compare score stores: one table, all rows on the same pool and the same queries.

    Args:
        stores: Folders of score stores; with ``run`` or ``runs``, also their names in that folder.
        protocol: What is evaluated on what.
        run: The run that they belong to; default: the folder that the first store is in.
        runs: Log folders of several runs, such as of several seeds.
        choose: Families of rows to choose the best of.
        half: Which half of the queries to report: "all", "development" or "report".
        against: The row to take paired differences to.
        by: Also print the metrics by "relation", or by number of "proponents".
        published: Set published figures beside ours, where there are any on the data set.
        output_dir: Where the files go; default: "evaluation" in the run's folder (of several runs, beside them), or
            "evaluation-candidates" with candidate pools.
        trust: Whether classes of the run's config that aren't ftrace's own are followed.
    """
    if choose and half not in (None, "report"):
        raise ValueError(
            f"half: expected report, found {half}: with --choose, the development half is what choices are made on"
        )
    if runs and run:
        raise ValueError("expected one of run and runs, found both")
    opened = _open_runs(stores, runs, trust) if runs else [open_stores_of_run(stores, run, trust)]
    kinds = {name: [row_name(name, kind) for kind in store.kinds] for name, store in opened[0][1].items()}
    chosen_from = families(choose or (), kinds)
    if against is not None:
        rows = [row for of_store in kinds.values() for row in of_store]
        known_name(against, [*rows, *[family.row for family in chosen_from]], "against")
    evaluation = over_runs(compare(of_run_stores, of_run, protocol) for of_run, of_run_stores in opened)
    if chosen_from:
        evaluation = choose_best(evaluation, chosen_from)
    elif half:
        evaluation = evaluation.in_half(half)
    first = opened[0][0]
    evaluation = replace(evaluation, against=against, published=published_for(first.tables) if published else ())
    folder = first.folder.resolve().parent if len(opened) > 1 else first.folder
    default = folder / ("evaluation" if protocol.pool == "all" else "evaluation-candidates")
    console = PlainConsole()
    console.print(render_table(evaluation))
    if by:
        console.print()
        console.print(render_breakdown(evaluation, breakdown(evaluation, by)))
    files = write_tables(evaluation, Path(output_dir) if output_dir else default)
    console.print(f"\nWrote {', '.join(file.name for file in files)} to {files[0].parent}", soft_wrap=True)
    look = show_command(*(store.path for store in opened[0][1].values()))
    console.print(f"Query by query: {look}", soft_wrap=True)


def _open_runs(stores: Sequence[str], runs: Sequence[str], trust: bool) -> list[tuple[Run, dict[str, ScoreStore]]]:
    """Open the stores of several runs, which must be in each run's folder."""
    folders = [newest_run(run) for run in runs]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"runs: expected each run once, found {list(runs)}")
    return [(Run(folder, trust), open_stores(stores, folder, only_in_run=True)) for folder in folders]


def compare(stores: Mapping[str, ScoreStore], run: Run, protocol: Protocol = Protocol()) -> Evaluation:
    """Evaluate the stores of one run.

    Args:
        stores: Stores by the name of their rows.
        run: The run.
        protocol: What is evaluated on what.

    Raises:
        ValueError: If there is no query to evaluate, or a store lacks a query or a candidate.
    """
    queries = protocol.evaluated(run)
    sentence_ids = run.tables.sentence_ids
    if protocol.level == "sentence" and sentence_ids is None:
        raise ValueError(
            f"level: expected rows that know their sentence, but {run.tables.data_path} has no sentence_id"
        )
    at_sentences = sentence_ids if protocol.level != "row" else None
    if protocol.pool == "all":
        everything = WholeTrainingSet(np.arange(len(run.tables.train_rows)))
        return replace(evaluate(stores, queries, everything, at_sentences), seed=protocol.seed)
    pools = run.candidate_pools(protocol.pools, queries.query_ids.tolist())
    evaluation = evaluate(stores, queries, pools, at_sentences)
    return replace(evaluation, pool=str(pools.settings), seed=protocol.seed)
