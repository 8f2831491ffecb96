"""``ftrace attribute``: one method over a finished run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse import ArgumentParser
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from ftrace.attribution import AttributionMethod, Task, find_method, known_methods
from ftrace.runs import Run
from ftrace.scores import ScoreStore, check_replaceable

_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 10**3, "MB": 10**6, "GB": 10**9}


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments, and say which methods there are."""
    lines = ((name, (kind.__doc__ or "").splitlines()[0]) for name, kind in known_methods().items())
    command.description = f"{command.description} METHODS: " + " ".join(f"{name}: {line}" for name, line in lines)
    command.add_function_arguments(attribute)


def attribute(
    method: AttributionMethod,
    run: str,
    output_dir: str | None = None,
    candidates: Literal["all", "pool"] = "all",
    queries: Literal["all", "learned"] = "all",
    accelerator: str = "auto",
    devices: int | str = 1,
    strategy: str = "auto",
    memory_budget: int | str = "2GiB",
    batch_size: int | None = None,
) -> None:
    """Score training examples for queries with one method, over a finished run.

    Args:
        method: A short name (METHODS), or the class path of a subclass of ftrace.attribution.AttributionMethod. Its
            options: --method.OPTION, listed by --method.help NAME.
        run: The run's log folder.
        output_dir: Where the score store goes; default: a folder named after the method, in the run's. What is
            unfinished is kept in OUTPUT_DIR-partial, and the same command goes on with it.
        candidates: Score "all" training examples, or only those in the "pool" of any of the queries.
        queries: For "all" queries, or those "learned" by the end of training.
        accelerator: Lightning's, such as "cpu" or "gpu".
        devices: How many processes share the work.
        strategy: Lightning's, such as "ddp".
        memory_budget: What a method may hold of the queries at a time, such as "500MiB". Scores don't depend on it.
        batch_size: Examples of a batch; default: as the run's.
    """
    of_run = Run(run)
    folder = Path(output_dir) if output_dir else of_run.folder / method.name
    check_replaceable(folder)
    settings = {"accelerator": accelerator, "devices": devices, "strategy": strategy, "batch_size": batch_size}
    budget = memory_budget if isinstance(memory_budget, int) else bytes_of(memory_budget)
    task = make_task(of_run, folder, candidates, queries, memory_budget=budget, **settings)
    store = method.score(task)
    say = rank_zero_only(Console().print)
    say(f"Wrote scores ({', '.join(store.kinds)}) to {folder}", soft_wrap=True)


def make_task(
    run: Run,
    output_dir: Path,
    candidates: Literal["all", "pool"] = "all",
    queries: Literal["all", "learned"] = "all",
    **settings: Any,
) -> Task:
    """A run's examples and queries, as methods get them.

    Args:
        run: The run.
        output_dir: Where the store goes.
        candidates: As :func:`attribute`.
        queries: As :func:`attribute`.
        settings: More fields of :class:`Task`.
    """
    try:
        snapshots = run.snapshots
    except ValueError:  # not every method reads them
        snapshots = []
    learned = np.array(run.learned_queries(), np.int64) if queries == "learned" else None
    if learned is not None and not len(learned):
        raise ValueError("queries: expected some to be learned, found none. Train for longer, or --queries all")
    pool = None
    if candidates == "pool":
        asked = None if queries == "learned" else run.data.query_rows["query_id"]  # None: the learned ones
        pool = np.unique(run.candidate_pools(query_ids=asked).example_ids)
    return Task(
        run.data,
        output_dir,
        snapshots,
        run.model_at,
        pool,
        learned,
        run.folder,
        manifest={"candidates": candidates, "queries": queries},
        **settings,
    )


def run_method(name: str, run: Run, output_dir: Path) -> ScoreStore:
    """Score all training examples of a run with one method that needs no options."""
    return find_method(name)().score(make_task(run, output_dir))


def with_class_paths(arguments: Sequence[str]) -> list[str]:
    """Arguments of ``ftrace attribute`` with methods' short names replaced by their class paths.

    Raises:
        ValueError: If a name is neither known nor a class path.

    Example:
        >>> with_class_paths(["attribute", "--method=bm25", "--run=x"])
        ['attribute', '--method=ftrace.attribution.Bm25', '--run=x']
    """
    if "attribute" not in arguments[:1]:
        return list(arguments)
    found: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option in _NAMING and equals:
            found.append(f"{option}={_class_path(value)}")
        elif found and found[-1] in _NAMING and not argument.startswith("-"):
            found.append(_class_path(argument))
        else:
            found.append(argument)
    return found


_NAMING = ("--method", "--method.help")


def _class_path(name: str) -> str:
    known = {kind.__name__: kind for kind in known_methods().values()}
    if "." in name or name in known or name.startswith("{"):
        return name
    kind = find_method(name)
    return f"{'ftrace.attribution' if kind.__module__.startswith('ftrace.') else kind.__module__}.{kind.__qualname__}"


def bytes_of(text: str) -> int:
    """A number of bytes from a text.

    Raises:
        ValueError: If it is none.

    Example:
        >>> bytes_of("1.5GiB"), bytes_of("4096")
        (1610612736, 4096)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match.group(2) not in ("", *_UNITS):
        raise ValueError(f"memory_budget: expected a number of bytes such as 500MiB or 2GiB, found {text!r}")
    return int(float(match.group(1)) * _UNITS.get(match.group(2), 1))
