"""What a report says of causal tracing on average over a run's queries: the facts of its tables, in words."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from ftrace.files.causal_settings import FORM, SETTINGS
from ftrace.files.manifests import read_manifest
from ftrace.report.explorer.content.causal_content import FOLDER, SUMMARY, read_joined, read_rows
from ftrace.shown_text import counted

if TYPE_CHECKING:
    from ftrace.causal import Stack
    from ftrace.evaluation import Estimate

AVERAGES = "average_effects.csv"
_COLUMNS = ("effect", "stack", "mediator", "outcome", "group", "layer", "prompts", "mean", "low", "high")
Facts = list[tuple[str, str]]


def causal_facts(run: Path) -> Facts | None:
    """Say what causal tracing found on average: names and values; None if nobody has traced.

    A file that can't be read is no error: there is a fact that says so.

    Args:
        run: The run's folder; what is in ``causal`` in it is read.
    """
    folder = run / FOLDER
    if not (folder / AVERAGES).exists():
        return None
    facts: Facts = []
    for of_file, file in ((_of_settings, SETTINGS), (_of_averages, AVERAGES), (_of_joined, SUMMARY)):
        if not (folder / file).exists():
            continue
        try:
            facts += of_file(folder / file)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, csv.Error) as error:
            facts.append(("damaged", f"{FOLDER}/{file} can't be read ({error}): trace again"))
    return facts


def _of_averages(file: Path) -> Iterator[tuple[str, str]]:
    from ftrace.causal.readout import IN_WORDS
    from ftrace.report.causal_words import UNITS, in_order, mediator_title

    unit = UNITS["probability"]
    rows = [row for row in read_rows(file, _COLUMNS) if row["outcome"] == "probability"]
    of_runs = {row["effect"]: row for row in rows if not row["mediator"]}
    yield "prompts", f"{of_runs['clean']['prompts']} traced"
    clean, corrupted = (unit.text(float(of_runs[name]["mean"])) for name in ("clean", "corrupted"))
    yield "probability of the answer", f"{clean} undisturbed, {corrupted} with a corrupted subject"
    yield "average total effect", f"{unit.effect(_estimate(of_runs['total']))} {unit.points}"
    yield "largest average effects", f"in {unit.points}, without the cells {IN_WORDS}, which are large in every model"
    indirect = [row for row in rows if row["effect"] == "indirect"]
    stacks = list(dict.fromkeys(row["stack"] for row in indirect))
    for stack in stacks:
        of_stack = [row for row in indirect if row["stack"] == stack]
        for mediator in in_order(dict.fromkeys(row["mediator"] for row in of_stack)):
            peak = _peak(cast("Stack", stack), mediator, [row for row in of_stack if row["mediator"] == mediator])
            title = f"{stack}: {mediator_title(mediator)}" if len(stacks) > 1 else mediator_title(mediator)
            if peak is None:
                yield title, "no effect is known"
            else:
                yield title, f"{unit.effect(_estimate(peak))} in layer {peak['layer']}, {peak['group']}"


def _peak(stack: Stack, mediator: str, rows: Sequence[Mapping[str, str]]) -> Mapping[str, str] | None:
    """Find the row of the largest average effect, as :meth:`ftrace.causal.StackAverages.peak` does."""
    from ftrace.causal.positions import GIVEN, LAST
    from ftrace.causal.readout import readout_cells

    groups = list(dict.fromkeys(row["group"] for row in rows))
    shape = (len(groups), 1 + max(int(row["layer"]) for row in rows))
    readout = readout_cells(stack, mediator, shape, groups.index(LAST), reads_subject=GIVEN not in groups)
    means = np.full(shape, -np.inf)
    places = {(groups.index(row["group"]), int(row["layer"])): row for row in rows if row["mean"]}
    for place, row in places.items():
        means[place] = float(row["mean"])
    means[readout] = -np.inf
    group, layer = np.unravel_index(means.argmax(), shape)
    return places[int(group), int(layer)] if np.isfinite(means).any() else None


def _estimate(row: Mapping[str, str]) -> Estimate:
    from ftrace.evaluation import Estimate

    return Estimate(*(float(row[name]) if row[name] else math.nan for name in ("mean", "low", "high")))


def _of_joined(file: Path) -> Iterator[tuple[str, str]]:
    from ftrace.report.joined_tables import signed

    joined = read_joined(file)

    def text(name: str) -> str:
        estimate = joined[name]
        mean, low, high = (math.nan if value is None else float(value) for value in
                           (estimate["mean"], *estimate["interval"]))  # fmt: skip
        ends = "" if math.isnan(low) else f" [{signed(low)}, {signed(high)}]"
        return "not known" if math.isnan(mean) else f"{signed(mean)}{ends}"

    if joined["left_out"]:
        yield "prompts left out", f"{joined['left_out']}: wrongly answered, or can't be traced"
    yield (
        "effects and scores",
        f"rank correlation over layers {text('rank_correlation')}, with other facts' profiles "
        f"{text('rank_correlation_mismatched')}; what counts is the difference, {text('difference')}",
    )
    for note in joined["notes"]:
        yield "note", str(note)


def _of_settings(file: Path) -> Iterator[tuple[str, str]]:
    settings = read_manifest(file, FORM)
    noise, window = settings["noise"], settings["settings"]["window"]
    samples, layers = counted(noise["samples"], "sample"), counted(window, "layer")
    yield "how", f"{noise['kind']} noise on the subject, scale {noise['scale']:g}, {samples}; windows of {layers}"
