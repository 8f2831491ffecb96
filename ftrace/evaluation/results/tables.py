"""Tables that compare files of results, for the terminal and as files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.text import Text

from ftrace.console import PlainTable
from ftrace.evaluation.estimates import Estimate
from ftrace.evaluation.files import groups_as_json, intervals_of, means_of, nan_as_null, replace_csv, replace_text
from ftrace.evaluation.formatting import cell, markdown_grid, percent, plain_table, with_interval
from ftrace.evaluation.query_groups import QueryGroup
from ftrace.evaluation.results.metrics import RESULTS_BY, ResultsEvaluation
from ftrace.files.claims import claimed
from ftrace.shown_text import markdown_text, plain

_MOST_METRICS = 6


def render_results(evaluation: ResultsEvaluation) -> RenderableType:
    """Render the metrics, the best of each column bold, and for several files the differences to one of them."""
    best = {metric: max(row[metric].mean for row in evaluation.estimates.values()) for metric in evaluation.metrics}
    table, shown = _table(evaluation, _title(evaluation)), _shown(evaluation)
    for name, row in evaluation.estimates.items():
        table.add_row(name, *[cell(row[metric], bold=row[metric].mean == best[metric]) for metric in shown])
    parts: list[RenderableType] = [table, *[Text(f" {plain(note)}", style="dim") for note in evaluation.notes]]
    hidden = len(evaluation.metrics) - _MOST_METRICS
    if hidden > 0:
        parts.append(Text(f" {hidden} more metrics: table.csv", style="dim"))
    if evaluation.against is not None:
        title = f"minus {evaluation.against}, paired by query; bold: the interval is without 0"
        differences = _table(evaluation, title)
        for name, row in evaluation.differences.items():
            cells = [cell(row[metric], bold=row[metric].excludes_0, signed=True) for metric in shown]
            differences.add_row(name, *cells)
        parts += [Text(), differences]
    return Stack(*parts)


def render_result_groups(evaluation: ResultsEvaluation, groups: Sequence[QueryGroup]) -> RenderableType:
    """Render MRR and recall of each file by group of queries."""
    metrics = evaluation.metrics[:2]
    several = len(evaluation.names) > 1
    columns = [f"{metric} {name}" if several else metric for name in evaluation.names for metric in metrics]
    table = plain_table(f"by {groups[0].by}", groups[0].by, ("queries", *columns))
    for group in groups:
        cells = [percent(group.estimates[name][metric].mean) for name in evaluation.names for metric in metrics]
        table.add_row(group.name, str(group.num_queries), *cells)
    return Stack(table, Text(" with intervals and all metrics: breakdown.csv", style="dim"))


def write_result_tables(evaluation: ResultsEvaluation, output_dir: Path) -> list[Path]:
    """Write an evaluation of files of results to a folder.

        table.md         the tables, in percent, with the ends of 95% intervals
        table.csv        a line for each file, as shares of 1
        table.json       the same, differences, and settings
        breakdown.csv    the metrics by query_set, relation and c4_frequency_bucket, where there are any
        per_query.csv    every metric of every query

    Returns:
        The paths of the files, in this order.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    groups = [group for by in RESULTS_BY for group in evaluation.groups(by)]
    files = [output_dir / name for name in ("table.md", "table.csv", "table.json", "breakdown.csv", "per_query.csv")]
    with claimed(output_dir, "ftrace evaluate", wait=True):  # all files are of one evaluation
        replace_text(files[0], _markdown(evaluation))
        replace_csv(files[1], _csv_rows(evaluation))
        replace_text(files[2], json.dumps(nan_as_null(_as_json(evaluation, groups)), indent=2, allow_nan=False) + "\n")
        replace_csv(files[3], _breakdown_rows(evaluation, groups))
        replace_csv(files[4], _query_rows(evaluation))
    return files


def _title(evaluation: ResultsEvaluation) -> str:
    in_all = f" in all of {len(evaluation.names)} files" if len(evaluation.names) > 1 else ""
    return f"{len(evaluation.queries):,} queries with labels{in_all}"


def _shown(evaluation: ResultsEvaluation) -> tuple[str, ...]:
    """Return the metrics that there is room for."""
    return evaluation.metrics[:_MOST_METRICS]


def _table(evaluation: ResultsEvaluation, title: str) -> PlainTable:
    return plain_table(title, "file", _shown(evaluation))


def _markdown(evaluation: ResultsEvaluation) -> str:
    metrics = evaluation.metrics
    rows = {name: [with_interval(row[metric]) for metric in metrics] for name, row in evaluation.estimates.items()}
    lines = [f"{_title(evaluation)}.", "", *markdown_grid(metrics, rows)]
    if evaluation.against is not None:
        rows = {
            name: [with_interval(row[metric], signed=True) for metric in metrics]
            for name, row in evaluation.differences.items()
        }
        lines += ["", f"Minus {markdown_text(evaluation.against)}, paired by query:", "", *markdown_grid(metrics, rows)]
    lines += ["", *[f"- {markdown_text(note)}" for note in evaluation.notes]]
    return "\n".join(lines) + "\n"


def _head(evaluation: ResultsEvaluation) -> list[str]:
    return [f"{metric}{end}" for metric in evaluation.metrics for end in ("", " low", " high")]


def _cells(row: Mapping[str, Estimate]) -> list[Any]:
    values = [value for estimate in row.values() for value in (estimate.mean, estimate.low, estimate.high)]
    return ["" if math.isnan(value) else value for value in values]


def _csv_rows(evaluation: ResultsEvaluation) -> Iterable[Sequence[Any]]:
    yield ["method", *_head(evaluation)]
    for name, row in evaluation.estimates.items():
        yield [name, *_cells(row)]


def _breakdown_rows(evaluation: ResultsEvaluation, groups: Sequence[QueryGroup]) -> Iterable[Sequence[Any]]:
    yield ["by", "group", "queries", "method", *_head(evaluation)]
    for group in groups:
        for name, row in group.estimates.items():
            yield [group.by, group.name, group.num_queries, name, *_cells(row)]


def _query_rows(evaluation: ResultsEvaluation) -> Iterable[Sequence[Any]]:
    yield ["example_id", "fact", *RESULTS_BY, "method", *evaluation.metrics]
    for query, of_query in zip(evaluation.queries, evaluation.values.tolist(), strict=True):
        for name, values in zip(evaluation.names, of_query, strict=True):
            yield [query.example_id, query.fact or "", *[query.groups[by] for by in RESULTS_BY], name, *values]


def _as_json(evaluation: ResultsEvaluation, groups: Sequence[QueryGroup]) -> dict[str, Any]:
    return {
        "num_queries": len(evaluation.queries),
        "notes": list(evaluation.notes),
        "seed": evaluation.seed,
        "resamples": evaluation.resamples,
        "rows": means_of(evaluation.estimates),
        "intervals": intervals_of(evaluation.estimates),
        "against": evaluation.against,
        "differences": {"means": means_of(evaluation.differences), "intervals": intervals_of(evaluation.differences)},
        "breakdown": groups_as_json(groups),
    }
