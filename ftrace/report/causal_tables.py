"""The numbers of causal tracing: CSV for spreadsheets, and a table to read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from ftrace.causal.averages import Averages, EffectGrid, StackAverages
from ftrace.causal.positions import groups_of
from ftrace.causal.prompt_trace import OUTCOMES, Outcome, PromptTrace
from ftrace.evaluation import Estimate
from ftrace.evaluation.files import replace_csv
from ftrace.evaluation.formatting import plain_table
from ftrace.report.causal_words import UNITS, in_order, mediator_title


def write_effects_csv(traces: Sequence[PromptTrace], file: Path) -> Path:
    """Write the effects of each traced prompt, a line for each stack, mediator, outcome, layer and place.

    Outcomes are as they are: probabilities are shares of 1, logarithms natural. ``group`` is empty before the subject
    in a stack that reads one way, and names two groups, with ``;`` between, where the subject is one token.

    Args:
        traces: Of prompts; those that were not traced have no lines.
        file: Where it goes; folders that are missing are made.

    Returns:
        The file.

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

    ``effect`` is "clean", "corrupted" and "total" of whole runs; "indirect" of a mediator in a group of places and a
    layer; and "severed", what severing takes away there: the indirect effect of "hidden" minus that of the mediator.

    Args:
        averages: Over prompts.
        file: Where it goes; folders that are missing are made.

    Returns:
        The file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_csv(file, _average_rows(averages))
    return file


def render_averages(averages: Averages, outcome: Outcome = "probability") -> RenderableType:
    """How many prompts were traced, the total effect, and where each mediator's effect is largest.

    Args:
        averages: Over prompts.
        outcome: On what the effects are.
    """
    unit = UNITS[outcome]
    clean, corrupted = (unit.text(one[outcome].mean) for one in (averages.clean, averages.corrupted))
    several = len(averages.stacks) > 1
    table = plain_table(f"average indirect effects, {unit.points}", "restored", ("peak", "95% interval", "layer", "at"))
    table.columns[-1].justify = "left"
    for stack, own in averages.stacks.items():
        for mediator in in_order(own.effects):
            name = escape(f"{stack}: {mediator_title(mediator)}" if several else mediator_title(mediator))
            peak = own.peak(mediator, outcome)
            if peak is None:
                table.add_row(name, "", "", "", "none")
            else:
                mean, _, ends = unit.effect(peak.effect).partition(" ")
                table.add_row(name, mean, escape(ends), str(peak.layer), peak.group)
    counts = ", ".join(f"{count} {status}" for status, count in averages.num_prompts.items())
    lines = [
        f" prompts: {counts}; facts: {averages.num_facts}",
        f" {unit.name} of the answer: clean {clean}, corrupted {corrupted}",
        f" average total effect: {unit.effect(averages.total_effect[outcome])} {unit.points}",
    ]
    notes = ["intervals of 95% over facts; layers from 0"]
    if any(_leaves_out_last(own) for own in averages.stacks.values()):
        notes.append("peaks of layers' outputs leave out the place where the answer is read off")
    return Group(*map(Text, lines), table, *[Text(f" {note}", style="dim") for note in notes])


def _leaves_out_last(own: StackAverages) -> bool:
    return own.stack == "decoder" and any(one == "hidden" or one.endswith("_severed") for one in own.effects)


def _effect_rows(traces: Sequence[PromptTrace]) -> Iterator[Sequence[Any]]:
    yield [
        "prompt", "stack", "mediator", "outcome", "layer", "place", "token", "group", "restored", "indirect_effect",
        "spread",
    ]  # fmt: skip
    for trace in traces:
        for stack, own in trace.stacks.items():
            groups = groups_of(trace, stack)
            names = [
                "; ".join(name for name, places in groups.items() if place in places)
                for place in range(len(own.tokens))
            ]
            for mediator, restored in own.restored.items():
                for number, outcome in enumerate(OUTCOMES):
                    grids = (
                        restored[number],
                        trace.indirect_effect(stack, mediator, outcome),
                        own.spread[mediator][number],
                    )
                    values = [grid.tolist() for grid in grids]
                    for layer, rows in enumerate(zip(*values, strict=True)):
                        for place, cells in enumerate(zip(*rows, strict=True)):
                            about = [layer, place, own.tokens[place], names[place]]
                            yield [trace.name, stack, mediator, outcome, *about, *map(_known, cells)]


def _average_rows(averages: Averages) -> Iterator[Sequence[Any]]:
    yield ["effect", "stack", "mediator", "outcome", "group", "layer", "prompts", "mean", "low", "high"]
    of_runs = {"clean": averages.clean, "corrupted": averages.corrupted, "total": averages.total_effect}
    for effect, by_outcome in of_runs.items():
        for outcome, estimate in by_outcome.items():
            yield [effect, "", "", outcome, "", "", averages.num_prompts["traced"], *_ends(estimate)]
    for own in averages.stacks.values():
        for effect, by_mediator in (("indirect", own.effects), ("severed", own.differences)):
            yield from _grid_rows(effect, own, by_mediator)


def _grid_rows(
    effect: str, own: StackAverages, by_mediator: Mapping[str, Mapping[Outcome, EffectGrid]]
) -> Iterator[Sequence[Any]]:
    for mediator, by_outcome in by_mediator.items():
        for outcome, grid in by_outcome.items():
            for row, (group, count) in enumerate(zip(own.groups, own.num_prompts.tolist(), strict=True)):
                for layer, (mean, low, high) in enumerate(
                    zip(grid.mean[row], grid.low[row], grid.high[row], strict=True)
                ):
                    cells = _ends(Estimate(float(mean), float(low), float(high)))
                    yield [effect, own.stack, mediator, outcome, group, layer, count, *cells]


def _ends(estimate: Estimate) -> list[float | str]:
    return [_known(value) for value in (estimate.mean, estimate.low, estimate.high)]


def _known(value: float) -> float | str:
    return "" if math.isnan(value) else value
