"""Tables of causal tracing: CSV for spreadsheets, and a printed table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ftrace.causal.averages import Averages, EffectGrid, StackAverages
from ftrace.causal.positions import groups_of
from ftrace.causal.prompt_trace import OUTCOMES, Outcome, PromptTrace
from ftrace.evaluation import Estimate
from ftrace.evaluation.files import replace_csv
from ftrace.evaluation.formatting import plain_table
from ftrace.files.noted_files import note_files
from ftrace.report.causal_words import UNITS, in_order, mediator_title


def write_effects_csv(traces: Sequence[PromptTrace], file: Path) -> Path:
    """Write the effects of each traced prompt, a line for each stack, mediator, outcome, layer and position.

    Values are not rescaled: probabilities are shares of 1, logarithms natural. ``group`` is empty for tokens before the
    subject in a causal stack, and names two groups, separated by ``;``, for a subject of a single token.

    Args:
        traces: Traces of prompts; those that were not traced have no lines.
        file: Path of the CSV; missing folders are made.

    Returns:
        The path.

    Raises:
        ValueError: If no prompt was traced.
    """
    if not any(trace.stacks for trace in traces):
        raise ValueError(f"expected at least one prompt that was traced, found none of {len(traces)}")
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_csv(file, _effect_rows(traces))
    return file


def write_averages_csv(averages: Averages, file: Path) -> Path:
    """Write average effects, a line for each, with the ends of 95% intervals; unknown ones are empty.

    ``effect`` is "clean", "corrupted" or "total" for whole runs, "indirect" for a mediator in a group of positions and
    a layer, and "severed" for the effect that severing removes there: the indirect effect of "hidden" minus that of the
    mediator.

    Args:
        averages: Averages over prompts.
        file: Path of the CSV; missing folders are made.

    Returns:
        The path.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_csv(file, _average_rows(averages))
    note_files(file.parent, [file.name])
    return file


def render_averages(averages: Averages, outcome: Outcome = "probability") -> RenderableType:
    """Render the number of traced prompts, the total effect, and the peak of each mediator's effect.

    Args:
        averages: Averages over prompts.
        outcome: The outcome whose effects are shown.
    """
    unit = UNITS[outcome]
    clean, corrupted = (unit.text(run[outcome].mean) for run in (averages.clean, averages.corrupted))
    several = len(averages.stacks) > 1
    table = plain_table(f"average indirect effects, {unit.points}", "restored", ("peak", "95% interval", "layer", "at"))
    table.columns[-1].justify = "left"
    for stack, of_stack in averages.stacks.items():
        for mediator in in_order(of_stack.effects):
            name = f"{stack}: {mediator_title(mediator)}" if several else mediator_title(mediator)
            peak = of_stack.peak(mediator, outcome)
            if peak is None:
                table.add_row(name, "", "", "", "none")
            else:
                mean, _, ends = unit.effect(peak.effect).partition(" ")
                table.add_row(name, mean, ends, str(peak.layer), peak.group)
    counts = ", ".join(f"{count} {status}" for status, count in averages.num_prompts.items())
    lines = [
        f" prompts: {counts}; facts: {averages.num_facts}",
        f" {unit.name} of the answer: clean {clean}, corrupted {corrupted}",
        f" average total effect: {unit.effect(averages.total_effect[outcome])} {unit.points}",
    ]
    notes = ["intervals of 95% over facts; layers from 0"]
    if any(_leaves_out_last(of_stack) for of_stack in averages.stacks.values()):
        notes.append("peaks of layers' outputs leave out the position at which the answer is read off")
    return Group(*map(Text, lines), table, *[Text(f" {note}", style="dim") for note in notes])


def _leaves_out_last(of_stack: StackAverages) -> bool:
    of_outputs = [mediator == "hidden" or mediator.endswith("_severed") for mediator in of_stack.effects]
    return of_stack.stack == "decoder" and any(of_outputs)


def _effect_rows(traces: Sequence[PromptTrace]) -> Iterator[Sequence[Any]]:
    yield [
        "prompt", "stack", "mediator", "outcome", "layer", "place", "token", "group", "restored", "indirect_effect",
        "spread",
    ]  # fmt: skip
    for trace in traces:
        for stack, of_stack in trace.stacks.items():
            groups = groups_of(trace, stack)
            names = [
                "; ".join(name for name, positions in groups.items() if position in positions)
                for position in range(len(of_stack.tokens))
            ]
            for mediator, restored in of_stack.restored.items():
                for number, outcome in enumerate(OUTCOMES):
                    grids = (
                        restored[number],
                        trace.indirect_effect(stack, mediator, outcome),
                        of_stack.spread[mediator][number],
                    )
                    values = [grid.tolist() for grid in grids]
                    for layer, rows in enumerate(zip(*values, strict=True)):
                        for position, cells in enumerate(zip(*rows, strict=True)):
                            about = [layer, position, of_stack.tokens[position], names[position]]
                            yield [trace.name, stack, mediator, outcome, *about, *map(_known, cells)]


def _average_rows(averages: Averages) -> Iterator[Sequence[Any]]:
    yield ["effect", "stack", "mediator", "outcome", "group", "layer", "prompts", "mean", "low", "high"]
    of_runs = {"clean": averages.clean, "corrupted": averages.corrupted, "total": averages.total_effect}
    for effect, by_outcome in of_runs.items():
        for outcome, estimate in by_outcome.items():
            yield [effect, "", "", outcome, "", "", averages.num_prompts["traced"], *_ends(estimate)]
    for of_stack in averages.stacks.values():
        for effect, by_mediator in (("indirect", of_stack.effects), ("severed", of_stack.differences)):
            yield from _grid_rows(effect, of_stack, by_mediator)


def _grid_rows(
    effect: str, of_stack: StackAverages, by_mediator: Mapping[str, Mapping[Outcome, EffectGrid]]
) -> Iterator[Sequence[Any]]:
    for mediator, by_outcome in by_mediator.items():
        for outcome, grid in by_outcome.items():
            for row, (group, count) in enumerate(zip(of_stack.groups, of_stack.num_prompts.tolist(), strict=True)):
                for layer, (mean, low, high) in enumerate(
                    zip(grid.mean[row], grid.low[row], grid.high[row], strict=True)
                ):
                    cells = _ends(Estimate(float(mean), float(low), float(high)))
                    yield [effect, of_stack.stack, mediator, outcome, group, layer, count, *cells]


def _ends(estimate: Estimate) -> list[float | str]:
    return [_known(value) for value in (estimate.mean, estimate.low, estimate.high)]


def _known(value: float) -> float | str:
    return "" if math.isnan(value) else value
