"""``ftrace attribute``: one method over a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from ftrace.arguments import Name, Positive, checked
from ftrace.attribution import AttributionMethod, describe_methods, find_method
from ftrace.commands.endings import NOTHING_KEPT, kept
from ftrace.commands.options import ProcessSettings, add_trust, number_of_bytes, take
from ftrace.commands.query_choice import ALL_QUERIES, QueryChoice
from ftrace.console import PlainConsole
from ftrace.launched_processes import is_first_process
from ftrace.run_folder import newest_run
from ftrace.runs import Run
from ftrace.scores import check_replaceable, show_command


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments, and say which methods there are."""
    lines = (f"{name}: {line}" for name, line in describe_methods().items())
    command.description = f"{command.description} METHODS: {' '.join(lines)}"
    command.add_function_arguments(attribute, skip={"choice", "processes", "trust"})
    add_trust(command)
    command.add_class_arguments(QueryChoice)
    command.set_defaults({"queries": ALL_QUERIES.queries})
    command.add_class_arguments(ProcessSettings)


def command(**options: Any) -> None:
    """Score training examples for queries with one method, over a finished run."""
    choice, processes = take(QueryChoice, options), take(ProcessSettings, options)
    attribute(**options, choice=choice, processes=processes)


@checked
def attribute(
    method: AttributionMethod,
    run: Name,
    output_dir: Name | None = None,
    candidates: Literal["all", "pool"] = "all",
    choice: QueryChoice = ALL_QUERIES,
    processes: ProcessSettings = ProcessSettings(),  # noqa: B008
    memory_budget: Positive | Name = "2GiB",
    batch_size: Positive | None = None,
    trust: bool = False,
) -> None:
    """Score training examples for queries with one method, over a finished run.

    Args:
        method: A short name (METHODS), or the class path of a subclass of ftrace.attribution.AttributionMethod. Its
            options: --method.OPTION, listed by --method.help NAME.
        run: The run's log folder.
        output_dir: Where the score store goes; default: a folder named after the method, in the run's. What is
            unfinished is kept in OUTPUT_DIR-partial, and the same command goes on with it.
        candidates: Score "all" training examples, or only those in the "pool" of any of the queries.
        choice: For which queries.
        processes: Which processes share the work.
        memory_budget: What a method may hold of the queries at a time, such as "500MiB". Scores don't depend on it.
        batch_size: Examples of a batch; default: as the run's.
        trust: Whether classes of the run's config that aren't ftrace's own are followed.
    """
    budget = number_of_bytes("memory_budget", memory_budget)
    of_run = Run(newest_run(run), trust)
    folder = Path(output_dir) if output_dir else of_run.folder / method.name
    check_replaceable(folder)
    settings = {**asdict(processes), "memory_budget": budget, "batch_size": batch_size}
    from ftrace.commands.method_tasks import make_task  # imports torch

    task = make_task(of_run, folder, candidates, choice, **settings)
    with kept(lambda: _what_is_kept(folder)):
        store = method.score(task)
    if is_first_process():
        written = f"Wrote scores ({', '.join(store.kinds)}) to {folder}."
        PlainConsole().print(f"{written} Look at them: {show_command(folder)}", soft_wrap=True)


def _what_is_kept(folder: Path) -> str:
    """Say what an interrupted method has left: methods that run a model finish block by block."""
    partial = folder.with_name(f"{folder.name}-partial")
    if not partial.exists():
        return NOTHING_KEPT
    return f"Finished blocks are kept in {partial}; the same command goes on with them."


def with_class_paths(arguments: Sequence[str]) -> list[str]:
    """Replace the short names of methods by their class paths, in arguments of ``ftrace attribute``.

    Raises:
        ValueError: If a name is neither known nor a class path.

    Example:
        >>> with_class_paths(["attribute", "--method=bm25", "--run=x"])
        ['attribute', '--method=ftrace.attribution.Bm25', '--run=x']
    """
    if "attribute" not in arguments[:1]:
        return list(arguments)
    replaced: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option in _NAMING and equals:
            replaced.append(f"{option}={_class_path(value)}")
        elif replaced and replaced[-1] in _NAMING and not argument.startswith("-"):
            replaced.append(_class_path(argument))
        else:
            replaced.append(argument)
    return replaced


_NAMING = ("--method", "--method.help")


def _class_path(name: str) -> str:
    if "." in name or name.startswith("{"):
        return name
    kind = find_method(name)
    return f"{'ftrace.attribution' if kind.__module__.startswith('ftrace.') else kind.__module__}.{kind.__qualname__}"
