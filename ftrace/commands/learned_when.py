"""``ftrace learned-when``: scores by the step at which their queries were learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ftrace.arguments import Name, Positive, checked
from ftrace.commands.options import take
from ftrace.commands.query_choice import ALL_QUERIES, QueryChoice
from ftrace.commands.stores import add_stores, open_stores_of_run
from ftrace.console import PlainConsole
from ftrace.evaluation.retrieval import learned_when, render_learned_when, write_learned_when


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments: several stores and kinds without brackets."""
    add_stores(command, "One of them records when queries were right.")
    command.add_argument("--kinds", nargs="+", type=str, help="Which kinds of scores; default: all.")
    command.add_function_arguments(compare_by_learned_step, skip={"stores", "run", "kinds", "choice", "trust"})
    command.add_class_arguments(QueryChoice)
    command.set_defaults({"queries": ALL_QUERIES.queries})


def command(**options: Any) -> None:
    """Compare scores by the step at which queries were learned: online ones, and those of snapshots."""
    choice = take(QueryChoice, options)
    compare_by_learned_step(**options, choice=choice)


@checked
def compare_by_learned_step(
    stores: Sequence[Name],
    run: Name | None = None,
    bins: Positive = 4,
    kinds: Sequence[Name] | None = None,
    output: Name | None = None,
    choice: QueryChoice = ALL_QUERIES,
    trust: bool = False,
) -> None:
    """Compare scores by the step at which queries were learned: online ones, and those of snapshots.

    Args:
        stores: Folders of score stores; one of them records when queries were right.
        run: The run that they belong to; default: the folder that the first store is in.
        bins: Into how many bins of queries that were learned, of about as many each.
        kinds: Which kinds of scores; default: all.
        output: Where the numbers go as JSON, and beside it the picture; default: learned_when.json beside the first
            store.
        choice: For which queries.
        trust: Whether classes of the run's config that aren't ftrace's own are followed.
    """
    of_run, opened = open_stores_of_run(stores, run, trust)
    compared = learned_when(opened, choice.evaluated(of_run), bins, kinds)
    first = next(iter(opened.values()))
    file = Path(output) if output else first.path.resolve().with_name("learned_when.json")
    write_learned_when(compared, file)
    from ftrace.report import plot_learned_when  # imports matplotlib

    picture = plot_learned_when(compared, file.with_suffix(".png"))
    console = PlainConsole()
    console.print(render_learned_when(compared))
    console.print(f"Wrote {file} and {picture}", soft_wrap=True)
