"""Tasks of attribution methods, made of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from ftrace.attribution import Task, find_method
from ftrace.commands.free_cores import use_free_cores
from ftrace.commands.query_choice import ALL_QUERIES, QueryChoice
from ftrace.runs import Run
from ftrace.scores import ScoreStore


def make_task(
    run: Run,
    output_dir: Path,
    candidates: Literal["all", "pool"] = "all",
    choice: QueryChoice = ALL_QUERIES,
    **settings: Any,
) -> Task:
    """Make a method's task of a run's examples and queries.

    Args:
        run: The run.
        output_dir: Where the store goes.
        candidates: As :func:`ftrace.commands.attribute.attribute`.
        choice: As :func:`ftrace.commands.attribute.attribute`.
        settings: More fields of :class:`Task`.
    """
    use_free_cores()
    try:
        snapshots = run.snapshots
    except ValueError:  # not every method reads them
        snapshots = []
    query_ids = choice.ids(run)
    pool = None
    if candidates == "pool":
        pool = np.unique(run.candidate_pools(query_ids=query_ids.tolist()).example_ids)
    return Task(
        run.data,
        output_dir,
        snapshots,
        run.model_at,
        pool,
        query_ids,
        run.folder,
        manifest={"candidates": candidates, **choice.facts()},
        **settings,
    )


def run_method(name: str, run: Run, output_dir: Path) -> ScoreStore:
    """Score all training examples of a run with one method that needs no options."""
    return find_method(name)().score(make_task(run, output_dir))
