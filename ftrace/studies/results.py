"""From a study's score stores to its tables and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from rich import box
from rich.console import Console
from rich.table import Table

from ftrace.commands.evaluate import Protocol, compare
from ftrace.evaluation import Estimate
from ftrace.evaluation.agreement import finite_correlation
from ftrace.evaluation.files import replace_text
from ftrace.evaluation.formatting import with_interval
from ftrace.evaluation.retrieval import Evaluation, choose_best, families, over_runs, write_tables
from ftrace.evaluation.stores import row_name
from ftrace.report import plot_bars, plot_curves
from ftrace.runs import Run
from ftrace.scores.correlation import rank_correlation
from ftrace.studies.settings import Study
from ftrace.studies.work import StudyRun

SHOWN = ("MRR", "P@10", "R@n")
BINS = 4


@dataclass(frozen=True)
class Grid:
    """Figures of several groups of rows.

    Args:
        title: What it shows.
        of: What groups are, such as "variant".
        cells: For each group and row, its estimates by metric; a row may be missing from a group.
        notes: For each group, more to say, such as how many queries it has.
    """

    title: str
    of: str
    cells: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    notes: Mapping[str, str]

    def render(self) -> Table:
        """As a person reads it, in percent with the ends of 95% intervals."""
        table = Table(title=self.title, box=box.SIMPLE_HEAD, padding=0, title_justify="left")
        table.add_column(self.of)
        table.add_column("scores", no_wrap=True)
        for metric in SHOWN:
            table.add_column(metric, justify="right", no_wrap=True)
        for group, rows in self.cells.items():
            for place, (row, estimates) in enumerate(rows.items()):
                first = (group, self.notes[group])[place] if place < 2 else ""
                table.add_row(first, row, *[with_interval(estimates[metric]) for metric in SHOWN])
            table.add_section()
        return table

    def markdown(self) -> str:
        """The same, to be pasted."""
        lines = [f"| {self.of} | scores | {' | '.join(SHOWN)} |", f"|---|---|{'---:|' * len(SHOWN)}"]
        for group, rows in self.cells.items():
            for row, estimates in rows.items():
                cells = " | ".join(with_interval(estimates[metric]) for metric in SHOWN)
                lines.append(f"| {group} ({self.notes[group]}) | {row} | {cells} |")
        return f"{self.title}\n\n" + "\n".join(lines) + "\n"


def report_study(study: Study, runs: Sequence[StudyRun], output_dir: Path, console: Console) -> list[Path]:
    """Print and write what a study has found.

    Returns:
        Its Markdown file and its picture, then the tables of each variant.
    """
    opened = {run: Run(run.folder) for run in runs}
    grids, files = [], []
    for pool in ("all", "candidates") if study.pools else ("all",):
        evaluations = {v: _evaluate(study, v, opened, pool) for v in study.variants}
        for variant, evaluation in evaluations.items():
            folder = "evaluation" if pool == "all" else "evaluation-candidates"
            files += write_tables(evaluation, output_dir / variant / folder)
        shown = {v: _shown(study, evaluation) for v, evaluation in evaluations.items()}
        notes = {v: f"{sum(len(run.queries) for run in e.runs)} queries" for v, e in evaluations.items()}
        where = "the whole training set" if pool == "all" else "candidate pools"
        grids.append(Grid(f"{study.question} On {where}", "variant", shown, notes))
        if pool == "all":
            whole = evaluations
    picture = output_dir / "picture.png"
    if study.report == "learned":
        grids += [
            _by_learned_step(study, v, whole[v], [r for r in runs if r.variant == v and opened[r].learned_queries()])
            for v in study.variants
        ]
        curves = {grid.title: {row: _series(grid, row) for row in _rows_of(grid)} for grid in grids[-len(whole) :]}
        plot_curves(curves, "queries by the step at which they were learned", "P@10", picture)
    elif study.report == "variants":
        rows = _rows_of(grids[0])
        plot_curves({study.question: {row: _series(grids[0], row) for row in rows}}, "variant", "P@10", picture)
    else:
        bars = {v: {row: one["P@10"] for row, one in cells.items()} for v, cells in grids[0].cells.items()}
        plot_bars(bars, "P@10", study.question, picture)
    text = [grid.markdown() for grid in grids]
    for grid in grids:
        console.print(grid.render())
    if study.report == "variants":
        text.append(_agreement(study, runs))
    text.append(_costs(study, runs))
    for lines in text[len(grids) :]:
        console.print(lines)
    file = output_dir / "study.md"
    replace_text(file, f"# {study.question}\n\n" + "\n".join(text))
    return [file, picture, *files]


def _evaluate(
    study: Study, variant: str, opened: Mapping[StudyRun, Run], pool: Literal["all", "candidates"]
) -> Evaluation:
    protocol = Protocol(pool=pool)
    of_variant = {run: data for run, data in opened.items() if run.variant == variant}
    without = [run.seed for run, data in of_variant.items() if not data.learned_queries()]
    if len(without) == len(of_variant):
        raise ValueError(f"variant {variant}: expected queries that were learned, found none. Train for longer")
    if without:
        rank_zero_warn(f"{variant}: no query was learned with the seeds {without}; they are left out")
        of_variant = {run: data for run, data in of_variant.items() if run.seed not in without}
    found = over_runs(compare(run.stores(study), data, protocol) for run, data in of_variant.items())
    if study.choose:
        first = next(iter(of_variant)).stores(study)
        kinds = {name: [row_name(name, kind) for kind in store.kinds] for name, store in first.items()}
        found = choose_best(found, families(study.choose, kinds))
    return replace(found, against=study.against)


def _shown(study: Study, evaluation: Evaluation) -> dict[str, dict[str, Estimate]]:
    rows = {name: row for name, row in evaluation.estimates.items() if name not in evaluation.hidden}
    if not study.rows:
        return rows
    return {name: row for name, row in rows.items() if any(fnmatchcase(name, glob) for glob in study.rows)}


def _by_learned_step(study: Study, variant: str, evaluation: Evaluation, runs: Sequence[StudyRun]) -> Grid:
    """Queries of all runs, in bins by the step at which they were right for the first time."""
    steps = []
    for run, metrics in zip(runs, evaluation.runs, strict=True):
        ledger = _learned_steps(run, study)
        steps.append(np.array([ledger[query] for query in metrics.queries.query_ids.tolist()]))
    everything = np.concatenate(steps)
    learned = everything[everything >= 0]
    ends: list[int] = []
    if len(learned):
        ends = np.unique(np.quantile(learned, np.linspace(0, 1, BINS + 1)).round().astype(int)).tolist()
        ends = [*ends[:-1], ends[-1] + 1] if len(ends) > 1 else [ends[0], ends[0] + 1]
    bins = {f"{low} to {high - 1}": (low, high) for low, high in pairwise(ends)}
    bins["never"] = (-1, 0)  # right by beam search at the end, and at no refresh
    cells, notes = {}, {}
    for name, (first, end) in bins.items():
        masks = [(own >= first) & (own < end) for own in steps]
        some = [place for place, mask in enumerate(masks) if mask.any()]
        if not some:
            continue
        part = replace(evaluation, runs=tuple(evaluation.runs[place] for place in some))
        cells[name] = _shown(study, part.where([masks[place] for place in some]))
        notes[name] = f"{sum(int(mask.sum()) for mask in masks)} queries"
    return Grid(f"{variant}: by the step at which a query was first right", "step", cells, notes)


def _learned_steps(run: StudyRun, study: Study) -> dict[int, int]:
    """At which step each query was first right."""
    ledger = run.stores(study)["online"].ledger
    if ledger is None:
        raise ValueError(f"{run.folder}: expected an online store with a ledger. Train with ledger=True")
    return dict(zip(ledger.query_ids.tolist(), ledger.learned_steps().tolist(), strict=True))


def _costs(study: Study, runs: Sequence[StudyRun]) -> str:
    """What each training and each method took, over runs."""
    lines = ["| | seconds | CPU seconds | peak memory, GiB |", "|---|---:|---:|---:|"]
    trainings = {v: [run.cost for run in runs if run.variant == v] for v in study.variants}
    scored = {name: [run.stores(study)[name].manifest for run in runs] for name in study.methods}
    named = {f"training {variant}, scores included": costs for variant, costs in trainings.items()} | scored
    for name, costs in named.items():
        seconds = np.mean([one["seconds"] for one in costs])
        cpu = _known(costs, "cpu_seconds")
        memory = _known(costs, "peak_memory_bytes")
        cells = [f"{np.mean(cpu):.1f}" if cpu else "", f"{max(memory) / 2**30:.2f}" if memory else ""]
        lines.append(f"| {name} | {seconds:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _agreement(study: Study, runs: Sequence[StudyRun]) -> str:
    """What each variant took, and how well its online scores agree with the first variant's, by every eighth query."""
    first = next(iter(study.variants))
    reference = {run.seed: run for run in runs if run.variant == first}
    kinds = reference[runs[0].seed].stores(study)["online"].kinds
    in_cpu = bool(_known([run.cost for run in runs], "cpu_seconds"))  # other work on the machine doesn't count there
    unit, name = ("CPU seconds", "cpu_seconds") if in_cpu else ("seconds", "seconds")
    head = f"| variant | training, {unit} | of {first} | {' | '.join(f'{kind}: rank correlation' for kind in kinds)} |"
    lines = [head, f"|---|---:|---:|{'---:|' * len(kinds)}"]
    base = float(np.mean([run.cost[name] for run in reference.values()]))
    for variant in study.variants:
        own = [run for run in runs if run.variant == variant]
        seconds = float(np.mean([run.cost[name] for run in own]))
        cells = []
        for kind in kinds:
            pairs = [(run.stores(study)["online"], reference[run.seed].stores(study)["online"]) for run in own]
            both = [(a, b) for a, b in pairs if kind in a.kinds]
            found = [
                finite_correlation(rank_correlation, *(store.scores(q, kind) for store in pair))
                for pair in both
                for q in pair[0].query_ids[::8].tolist()
            ]
            known = [one for one in found if not np.isnan(one)]
            cells.append(f"{np.mean(known):.3f}" if known else "")
        lines.append(f"| {variant} | {seconds:.0f} | {seconds / base:.2f} x | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _known(costs: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """One entry of all costs; none if one lacks it."""
    return [float(one[name]) for one in costs] if all(name in one for one in costs) else []


def _rows_of(grid: Grid) -> list[str]:
    return list(dict.fromkeys(row for rows in grid.cells.values() for row in rows))


def _series(grid: Grid, row: str) -> dict[str, Estimate]:
    return {group: rows[row]["P@10"] for group, rows in grid.cells.items() if row in rows}
