"""What ``ftrace causal-trace`` prints and writes of traces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from ftrace.causal import Averages, Outcome, PromptTrace, TracedPrompts, TraceTask, average_effects
from ftrace.commands.join_settings import JoinSettings
from ftrace.commands.joined import join as join_to_scores
from ftrace.console import PlainConsole
from ftrace.progress import track
from ftrace.report import (
    plot_average,
    plot_lines,
    plot_prompt,
    render_averages,
    write_averages_csv,
    write_effects_csv,
)
from ftrace.report.joined_tables import render_joined
from ftrace.report.pictures import remove_pictures
from ftrace.runs import Run
from ftrace.scores import ScoreStore
from ftrace.shown_text import counted

_MOST_LISTED = 12


@dataclass(frozen=True)
class Shown:
    """The options of what is written of traces: see :func:`ftrace.commands.causal_trace.causal_trace`."""

    outcome: Outcome
    pictures: int
    seed: int
    effects_csv: bool


@rank_zero_only
def finish(
    task: TraceTask,
    found: TracedPrompts,
    shown: Shown,
    run: Run | None,
    store: ScoreStore | None,
    join: JoinSettings,
) -> None:
    """Print and write what was found, in the first process.

    Args:
        task: What was traced.
        found: The traces.
        shown: What to write.
        run: The run that trained the model, if one did.
        store: Scores to join traces to, of that run; None for none.
        join: How.

    Raises:
        ValueError: If no prompt was traced.
    """
    console = PlainConsole()
    traces = found.traces
    tell_sample(task, found, console)
    tell_left_out(traces, console)
    _check_some_traced(traces)
    averages = average_effects(traces, seed=shown.seed)
    console.print(render_averages(averages, shown.outcome))
    written = write_results(task.folder, traces, averages, shown.outcome, shown.pictures, effects_csv=shown.effects_csv)
    if store is not None:
        assert run is not None
        joined = join_to_scores(traces, store, run.data, task.layer_names, task.folder, join, shown.outcome, shown.seed)
        console.print(render_joined(joined.joined))
        written += [*(file.name for file in joined.tables), *(["joined/"] if joined.pictures else [])]
    console.print(f"Wrote {', '.join(written)} to {task.folder}", soft_wrap=True)


def _check_some_traced(traces: Sequence[PromptTrace]) -> None:
    if any(trace.status == "traced" for trace in traces):
        return
    ranked = sorted((trace.rank, trace.name) for trace in traces if trace.rank is not None)
    best = ", ".join(f"{name} (rank {rank})" for rank, name in ranked[:5])
    raise ValueError(
        f"expected at least one prompt that the model answers rightly, found none of {len(traces)}."
        + (f" The best ranks of answers' first tokens: {best}. --only_correct false traces them all" if best else "")
    )


def write_results(
    folder: Path,
    traces: Sequence[PromptTrace],
    averages: Averages,
    outcome: Outcome,
    pictures: int,
    *,
    effects_csv: bool = True,
) -> list[str]:
    """Write tables and pictures of traced prompts.

    Args:
        folder: Where they go.
        traces: Of all prompts.
        averages: Of those that were traced.
        outcome: What pictures show.
        pictures: How many prompts to draw.
        effects_csv: Whether to write every cell of every prompt.

    Returns:
        What was written, by name.
    """
    write_averages_csv(averages, folder / "average_effects.csv")
    plot_average(averages, folder / "average.png", outcome)
    plot_lines(averages, folder / "lines.png", outcome)
    remove_pictures(folder / "pictures")
    drawn = [trace for trace in traces if trace.status == "traced"][:pictures]
    for trace in track(drawn, "Drawing"):
        plot_prompt(trace, outcome, folder / "pictures" / f"{trace.name}.png")
    written = ["prompts/", "average_effects.csv", "average.png", "lines.png", *(["pictures/"] if drawn else [])]
    if effects_csv:
        write_effects_csv(traces, folder / "effects.csv")
        written.insert(1, "effects.csv")
    return written


def tell_sample(task: TraceTask, found: TracedPrompts, console: Console) -> None:
    """Say how many prompts were looked at for a sample, and what a folder had already."""
    looked, traced = len(found.traces), sum(trace.status == "traced" for trace in found.traces)
    if task.sample is not None:
        among = f"{looked:,} of {len(task.prompts):,} prompts, in an order drawn by seed {task.seed}"
        if traced < task.sample:
            console.print(f"Looked at all {looked:,} prompts: {traced:,} are traced, of {task.sample:,} asked for.")
        else:
            console.print(f"Looked at {among}, until {traced:,} were traced, as asked.")
    if found.kept:
        added = looked - found.kept
        console.print(
            f"{found.kept:,} of {looked:,} prompts were in the folder already and are kept; {added:,} were added."
        )
    if found.others:
        console.print(
            f"The folder also has {counted(found.others, 'trace')} of other prompts, not part of these results."
        )
    if found.sigma is not None:
        console.print(f"The unit of noise is that of the folder's first traces, {found.sigma:.4g}.")


def tell_left_out(traces: Sequence[PromptTrace], console: Console) -> None:
    """List the prompts that were left out, and why."""
    counts: Mapping[str, int] = Counter(trace.status for trace in traces)
    if counts["wrong"]:
        console.print(f"{counts['wrong']} of {len(traces)} prompts are left out: the model answers them wrongly.")
    refused = [trace for trace in traces if trace.status == "refused"]
    if refused:
        console.print(f"{len(refused)} of {len(traces)} prompts can't be traced:")
    for trace in refused[:_MOST_LISTED]:
        console.print(f"  {trace.name}: {trace.reason}", soft_wrap=True)
    if len(refused) > _MOST_LISTED:
        console.print(f"  ... and {len(refused) - _MOST_LISTED} more; each has its reason in its file in prompts/")
