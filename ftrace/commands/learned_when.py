"""``ftrace learned-when``: scores by the step at which their queries were learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console

from ftrace.commands.stores import open_stores
from ftrace.evaluation.retrieval import learned_when, render_learned_when, write_learned_when
from ftrace.report import plot_learned_when
from ftrace.runs import Run


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments: several stores and kinds without brackets."""
    command.add_argument("stores", nargs="+", type=str, help="Folders of score stores; one of them has a ledger.")
    command.add_argument("--kinds", nargs="+", type=str, help="Which kinds of scores; default: all.")
    command.add_function_arguments(compare_by_learned_step, skip={"stores", "kinds"})


def compare_by_learned_step(
    stores: Sequence[str],
    run: str | None = None,
    bins: int = 4,
    kinds: Sequence[str] | None = None,
    output: str | None = None,
) -> None:
    """Compare scores by the step at which queries were learned: online ones, and those of snapshots.

    Args:
        stores: Folders of score stores; one of them has a ledger that knows when queries were right.
        run: The log folder of the run that they belong to; default: the folder that the first store is in.
        bins: Into how many bins, of about as many queries each.
        kinds: Which kinds of scores; default: all.
        output: Where the numbers go as JSON, and beside it the picture; default: learned_when.json beside the first
            store.
    """
    opened = open_stores(stores)
    of_run = Run(run if run is not None else Path(stores[0]).resolve().parent)
    found = learned_when(opened, of_run.queries(), bins, kinds)
    file = Path(output) if output else Path(stores[0]).resolve().with_name("learned_when.json")
    write_learned_when(found, file)
    picture = plot_learned_when(found, file.with_suffix(".png"))
    console = Console()
    console.print(render_learned_when(found))
    console.print(f"Wrote {file} and {picture}", soft_wrap=True)
