"""A study's tables and picture, made from its score stores."""

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

from ftrace.commands.evaluate import Protocol, compare
from ftrace.console import PlainTable
from ftrace.evaluation import Estimate
from ftrace.evaluation.files import replace_text
from ftrace.evaluation.formatting import with_interval
from ftrace.evaluation.retrieval import Evaluation, choose_best, families, over_runs, write_tables
from ftrace.evaluation.stores import row_name
from ftrace.report import plot_bars, plot_curves
from ftrace.runs import Run
from ftrace.scores.correlation import finite_correlation, rank_correlation
from ftrace.shown_text import markdown_text, plain
from ftrace.studies.settings import Study
from ftrace.studies.work import StudyRun

SHOWN = ("MRR", "P@10", "R@n")
BINS = 4
_NEVER, _KNOWN, _UNKNOWN = -1, -2, -3  # of a query that was learned at no step: never right, or right from the first


@dataclass(frozen=True)
class Grid:
    """Figures of several groups of rows.

    Args:
        title: What it shows.
        of: What the groups are, such as "variant".
        cells: For each group and row, its estimates by metric; a row may be missing from a group.
        notes: A note on each group, such as how many queries it has.
        ceilings: The highest P@10 that any method can reach in each group.
    """

    title: str
    of: str
    cells: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    notes: Mapping[str, str]
    ceilings: Mapping[str, float]

    def render(self) -> PlainTable:
        """Render a table for the terminal, in percent with the ends of 95% intervals."""
        table = PlainTable(title=self.title, box=box.SIMPLE_HEAD, padding=0, title_justify="left")
        table.add_column(self.of)
        table.add_column("scores", no_wrap=True)
        for metric in SHOWN:
            table.add_column(metric, justify="right", no_wrap=True)
        for group, rows in self.cells.items():
            for index, (row, estimates) in enumerate(rows.items()):
                first = (group, self.notes[group])[index] if index < 2 else ""
                table.add_row(first, row, *[with_interval(estimates[metric]) for metric in SHOWN])
            table.add_section()
        return table

    def markdown(self) -> str:
        """Render the same table in Markdown."""
        lines = [f"| {markdown_text(self.of)} | scores | {' | '.join(SHOWN)} |", f"|---|---|{'---:|' * len(SHOWN)}"]
        for group, rows in self.cells.items():
            for row, estimates in rows.items():
                cells = " | ".join(with_interval(estimates[metric]) for metric in SHOWN)
                lines.append(f"| {markdown_text(f'{group} ({self.notes[group]})')} | {markdown_text(row)} | {cells} |")
        return f"{markdown_text(self.title)}\n\n" + "\n".join(lines) + "\n"


def report_study(study: Study, runs: Sequence[StudyRun], output_dir: Path, console: Console) -> list[Path]:
    """Print and write a study's results.

    Returns:
        Its Markdown file and its picture, then the tables of each variant.
    """
    opened = {run: Run(run.folder, trust=True) for run in runs}
    grids, files = [], []
    for pool in ("all", "candidates") if study.pools else ("all",):
        evaluations = {v: _evaluate(study, v, opened, pool) for v in study.variants}
        for variant, evaluation in evaluations.items():
            folder = "evaluation" if pool == "all" else "evaluation-candidates"
            files += write_tables(evaluation, output_dir / variant / folder)
        shown = {v: _shown(study, evaluation) for v, evaluation in evaluations.items()}
        notes = {v: f"{sum(len(run.queries) for run in e.runs)} queries" for v, e in evaluations.items()}
        where = "the whole training set" if pool == "all" else "candidate pools"
        ceilings = {v: e.ceiling["P@10"] for v, e in evaluations.items()}
        grids.append(Grid(f"{study.question} On {where}", "variant", shown, notes, ceilings))
        if pool == "all":
            in_all = evaluations
    picture = output_dir / "picture.png"
    if study.report == "learned":
        grids += [
            _by_learned_step(study, v, in_all[v], [r for r in runs if r.variant == v and opened[r].learned_queries()])
            for v in study.variants
        ]
        of_steps = grids[-len(study.variants) :]
        curves = {grid.title: {row: _series(grid, row) for row in _rows_of(grid)} for grid in of_steps}
        most = {grid.title: grid.ceilings for grid in of_steps}
        plot_curves(curves, most, "queries by the step at which they were learned", "P@10", picture)
    elif study.report == "variants":
        rows = _rows_of(grids[0])
        curves = {study.question: {row: _series(grids[0], row) for row in rows}}
        plot_curves(curves, {study.question: grids[0].ceilings}, "variant", "P@10", picture)
    else:
        bars = {v: {row: estimates["P@10"] for row, estimates in cells.items()} for v, cells in grids[0].cells.items()}
        plot_bars(bars, grids[0].ceilings, "P@10", study.question, picture)
    text = [grid.markdown() for grid in grids]
    for grid in grids:
        console.print(grid.render())
    if study.report == "variants":
        text.append(_agreement(study, runs))
    text.append(_costs(study, runs))
    for lines in text[len(grids) :]:
        console.print(lines)
    file = output_dir / "study.md"
    replace_text(file, f"# {markdown_text(study.question)}\n\n" + "\n".join(text))
    return [file, picture, *files]


def _evaluate(
    study: Study, variant: str, opened: Mapping[StudyRun, Run], pool: Literal["all", "candidates"]
) -> Evaluation:
    protocol = Protocol(pool=pool)
    of_variant = {run: data for run, data in opened.items() if run.variant == variant}
    seeds_without = [run.seed for run, data in of_variant.items() if not data.learned_queries()]
    if len(seeds_without) == len(of_variant):
        raise ValueError(f"variant {variant}: expected queries that were learned, found none. Train for longer")
    if seeds_without:
        rank_zero_warn(f"{plain(variant)}: no query was learned with the seeds {seeds_without}; they are left out")
        of_variant = {run: data for run, data in of_variant.items() if run.seed not in seeds_without}
    evaluation = over_runs(compare(run.stores(study), data, protocol) for run, data in of_variant.items())
    if study.choose:
        first = next(iter(of_variant)).stores(study)
        kinds = {name: [row_name(name, kind) for kind in store.kinds] for name, store in first.items()}
        evaluation = choose_best(evaluation, families(study.choose, kinds))
    return replace(evaluation, against=study.against)


def _shown(study: Study, evaluation: Evaluation) -> dict[str, dict[str, Estimate]]:
    rows = {name: row for name, row in evaluation.estimates.items() if name not in evaluation.hidden}
    if not study.rows:
        return rows
    return {name: row for name, row in rows.items() if any(fnmatchcase(name, glob) for glob in study.rows)}


def _by_learned_step(study: Study, variant: str, evaluation: Evaluation, runs: Sequence[StudyRun]) -> Grid:
    """Group the queries of all runs by the step at which they were first answered correctly."""
    steps = []
    for run, metrics in zip(runs, evaluation.runs, strict=True):
        learned_at = _learned_steps(run, study)
        steps.append(np.array([learned_at[query] for query in metrics.queries.query_ids.tolist()]))
    everything = np.concatenate(steps)
    learned = everything[everything >= 0]
    ends: list[int] = []
    if len(learned):
        ends = np.unique(np.quantile(learned, np.linspace(0, 1, BINS + 1)).round().astype(int)).tolist()
        ends = [*ends[:-1], ends[-1] + 1] if len(ends) > 1 else [ends[0], ends[0] + 1]
    bins = {"from the first": (_KNOWN, _KNOWN + 1)}
    bins |= {f"{low} to {high - 1}": (low, high) for low, high in pairwise(ends)}
    bins["never"] = (_NEVER, _NEVER + 1)  # correct by beam search at the end, and at no refresh
    cells, notes, ceilings = {}, {}, {}
    for name, (first, end) in bins.items():
        masks = [(of_run >= first) & (of_run < end) for of_run in steps]
        with_queries = [index for index, mask in enumerate(masks) if mask.any()]
        if not with_queries:
            continue
        part = replace(evaluation, runs=tuple(evaluation.runs[index] for index in with_queries))
        part = part.where([masks[index] for index in with_queries])
        cells[name], ceilings[name] = _shown(study, part), part.ceiling["P@10"]
        notes[name] = f"{sum(int(mask.sum()) for mask in masks)} queries"
    return Grid(f"{variant}: by the step at which a query was first right", "step", cells, notes, ceilings)


def _learned_steps(run: StudyRun, study: Study) -> dict[int, int]:
    """Return the step at which each query was learned, or what it is instead of a step."""
    answers = run.stores(study)["online"].answers
    if answers is None:
        raise ValueError(
            f"{run.folder}: expected an online store that records when queries were right, found none. Train with a "
            "module that has learned(batch), or query_learned=..."
        )
    return {
        query: _KNOWN if answered.was_known else _UNKNOWN if answered.step is None else answered.step
        for query, answered in answers.states().items()
    }


def _costs(study: Study, runs: Sequence[StudyRun]) -> str:
    """Tabulate the time and memory of each training and each method, over runs."""
    lines = ["| | seconds | CPU seconds | peak memory, GiB |", "|---|---:|---:|---:|"]
    trainings = {v: [run.cost for run in runs if run.variant == v] for v in study.variants}
    scored = {name: [run.stores(study)[name].manifest for run in runs] for name in study.methods}
    named = {f"training {variant}, scores included": costs for variant, costs in trainings.items()} | scored
    for name, costs in named.items():
        seconds = np.mean([cost["seconds"] for cost in costs])
        cpu = _known(costs, "cpu_seconds")
        memory = _known(costs, "peak_memory_bytes")
        cells = [f"{np.mean(cpu):.1f}" if cpu else "", f"{max(memory) / 2**30:.2f}" if memory else ""]
        lines.append(f"| {markdown_text(name)} | {seconds:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _agreement(study: Study, runs: Sequence[StudyRun]) -> str:
    """Tabulate each variant's cost and its online scores' agreement with the first variant's, on every eighth query."""
    first = next(iter(study.variants))
    reference = {run.seed: run for run in runs if run.variant == first}
    kinds = reference[runs[0].seed].stores(study)["online"].kinds
    in_cpu = bool(_known([run.cost for run in runs], "cpu_seconds"))  # other work on the machine doesn't count there
    unit, name = ("CPU seconds", "cpu_seconds") if in_cpu else ("seconds", "seconds")
    of_kinds = " | ".join(markdown_text(f"{kind}: rank correlation") for kind in kinds)
    head = f"| variant | training, {unit} | of {markdown_text(first)} | {of_kinds} |"
    lines = [head, f"|---|---:|---:|{'---:|' * len(kinds)}"]
    base = float(np.mean([run.cost[name] for run in reference.values()]))
    num_undefined = 0
    for variant in study.variants:
        of_variant = [run for run in runs if run.variant == variant]
        seconds = float(np.mean([run.cost[name] for run in of_variant]))
        cells = []
        for kind in kinds:
            pairs = [(run.stores(study)["online"], reference[run.seed].stores(study)["online"]) for run in of_variant]
            with_kind = [(a, b) for a, b in pairs if kind in a.kinds]
            correlations = [
                finite_correlation(rank_correlation, *(store.scores(q, kind) for store in pair))
                for pair in with_kind
                for q in pair[0].query_ids[::8].tolist()
            ]
            known = [correlation for correlation in correlations if not np.isnan(correlation)]
            num_undefined += len(correlations) - len(known)
            cells.append(f"{np.mean(known):.3f}" if known else "")
        lines.append(f"| {markdown_text(variant)} | {seconds:.0f} | {seconds / base:.2f} x | {' | '.join(cells)} |")
    if num_undefined:
        lines += ["", f"Left out: {num_undefined} rank correlations with constant scores."]
    return "\n".join(lines) + "\n"


def _known(costs: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Collect one entry of all costs; none if a cost lacks it."""
    return [float(cost[name]) for cost in costs] if all(name in cost for cost in costs) else []


def _rows_of(grid: Grid) -> list[str]:
    return list(dict.fromkeys(row for rows in grid.cells.values() for row in rows))


def _series(grid: Grid, row: str) -> dict[str, Estimate]:
    return {group: rows[row]["P@10"] for group, rows in grid.cells.items() if row in rows}
