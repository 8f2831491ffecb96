"""Files with the tables: Markdown to be pasted, CSV for spreadsheets, JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ftrace.evaluation.estimates import Estimate
from ftrace.evaluation.files import groups_as_json, intervals_of, means_of, nan_as_null, replace_csv, replace_text
from ftrace.evaluation.formatting import markdown_grid, percent, with_interval
from ftrace.evaluation.query_groups import QueryGroup
from ftrace.evaluation.retrieval.breakdowns import breakdown
from ftrace.evaluation.retrieval.evaluation import Evaluation
from ftrace.evaluation.retrieval.metrics import MAIN, METRICS, OPPONENTS, RETRIEVAL
from ftrace.evaluation.retrieval.render import notes_of, title_of
from ftrace.files.claims import claimed
from ftrace.files.manifests import write_json
from ftrace.shown_text import markdown_text


def write_tables(evaluation: Evaluation, output_dir: Path) -> list[Path]:
    """Write an evaluation to a folder.

        table.md         the tables, in percent, with the ends of 95% intervals
        table.csv        a line for each row, as shares of 1
        table.json       the same, differences, settings, each run, and groups of queries
        breakdown.csv    the main metrics by relation and by number of proponents
        per_query.csv    every metric of every query

    Returns:
        The paths of the files, in this order.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    groups = [*breakdown(evaluation, "relation"), *breakdown(evaluation, "proponents")]
    files = [output_dir / name for name in ("table.md", "table.csv", "table.json", "breakdown.csv", "per_query.csv")]
    with claimed(output_dir, "ftrace evaluate", wait=True):  # all files are of one evaluation
        replace_text(files[0], _markdown(evaluation))
        replace_csv(files[1], _csv_rows(evaluation))
        write_json(files[2], nan_as_null(_as_json(evaluation, groups)))
        replace_csv(files[3], _breakdown_rows(groups))
        replace_csv(files[4], _query_rows(evaluation))
    return files


def _markdown(evaluation: Evaluation) -> str:
    lines = [f"{markdown_text(title_of(evaluation))}. Pool: {markdown_text(evaluation.pool)}.", ""]
    lines += _markdown_table(evaluation, RETRIEVAL, ceiling=True)
    if evaluation.against is not None:
        lines += ["", f"Minus {markdown_text(evaluation.against)}, paired by query:", ""]
        rows = {
            name: [with_interval(row[metric], signed=True) for metric in MAIN]
            for name, row in evaluation.differences.items()
        }
        lines += markdown_grid(MAIN, rows)
    lines += ["", "Ground-truth proponents among opponents (lower is better):", ""]
    lines += _markdown_table(evaluation, OPPONENTS, ceiling=False)
    lines += ["", *[f"- {markdown_text(note)}" for note in notes_of(evaluation)]]
    return "\n".join(lines) + "\n"


def _markdown_table(evaluation: Evaluation, metrics: Sequence[str], *, ceiling: bool) -> list[str]:
    rows = {name: [with_interval(row[metric]) for metric in metrics] for name, row in evaluation.estimates.items()}
    if ceiling:
        for row in evaluation.published:
            cells = [percent(row.metrics[metric]) if metric in row.metrics else "" for metric in metrics]
            rows[f"{row.method} (published)"] = cells
        rows["ceiling"] = [percent(evaluation.ceiling[metric]) for metric in metrics]
    return markdown_grid(metrics, rows)


def _csv_rows(evaluation: Evaluation) -> Iterable[Sequence[Any]]:
    several = len(evaluation.runs) > 1
    ends = ["", " low", " high", *([" spread"] if several else [])]
    yield ["method", "source", *[f"{metric}{end}" for metric in METRICS for end in ends]]

    def cells(estimates: Mapping[str, Estimate]) -> list[Any]:
        values: list[float | None] = []
        for metric in METRICS:
            estimate = estimates.get(metric, Estimate(math.nan, math.nan, math.nan))
            values += [estimate.mean, estimate.low, estimate.high, *([estimate.spread] if several else [])]
        return ["" if value is None or math.isnan(value) else value for value in values]

    for name, row in evaluation.estimates.items():
        yield [name, "ours", *cells(row)]
    for published in evaluation.published:
        yield [published.method, published.source, *cells(_without_ends(published.metrics))]
    yield ["ceiling", "ceiling", *cells(_without_ends(evaluation.ceiling))]


def _without_ends(means: Mapping[str, float]) -> dict[str, Estimate]:
    return {metric: Estimate(mean, math.nan, math.nan) for metric, mean in means.items()}


def _breakdown_rows(groups: Sequence[QueryGroup]) -> Iterable[Sequence[Any]]:
    yield ["by", "group", "queries", "method", *[f"{metric}{end}" for metric in MAIN for end in ("", " low", " high")]]
    for group in groups:
        for name, row in group.estimates.items():
            values = [value for metric in MAIN for value in (row[metric].mean, row[metric].low, row[metric].high)]
            cells = ["" if math.isnan(value) else value for value in values]
            yield [group.by, group.name, group.num_queries, name, *cells]


def _query_rows(evaluation: Evaluation) -> Iterable[Sequence[Any]]:
    yield ["run", "query_id", "fact", "half", "candidates", "proponents", "method", *METRICS]
    for run_number, run in enumerate(evaluation.runs):
        for column, query_id in enumerate(run.queries.query_ids.tolist()):
            half = "development" if run.queries.is_development[column] else "report"
            about = [run_number, query_id, run.queries.facts[column], half]
            about += [int(run.num_candidates[column]), int(run.num_proponents[column])]
            for name, row in run.rows.items():
                yield [*about, name, *[float(row[metric][column]) for metric in METRICS]]


def _as_json(evaluation: Evaluation, groups: Sequence[QueryGroup]) -> dict[str, Any]:
    first = evaluation.runs[0]
    sizes = [int(size) for run in evaluation.runs for size in run.num_candidates]
    estimates = evaluation.estimates
    return {
        "queries": first.queries.description,
        "num_queries": sum(len(run.queries) for run in evaluation.runs),
        "num_runs": len(evaluation.runs),
        "without_proponents": first.queries.without_proponents,
        "pool": evaluation.pool,
        "num_candidates": {"least": min(sizes), "most": max(sizes), "mean": sum(sizes) / len(sizes)},
        "level": evaluation.level,
        "half": evaluation.half,
        "notes": list(evaluation.notes),
        "seed": evaluation.seed,
        "resamples": evaluation.resamples,
        "rows": means_of(estimates),
        "intervals": intervals_of(estimates),
        "spread": {
            name: {metric: estimate.spread for metric, estimate in row.items()} for name, row in estimates.items()
        },
        "ceiling": evaluation.ceiling,
        "against": evaluation.against,
        "differences": {"means": means_of(evaluation.differences), "intervals": intervals_of(evaluation.differences)},
        "by_run": [
            {name: {metric: float(values.mean()) for metric, values in row.items()} for name, row in run.rows.items()}
            for run in evaluation.runs
        ],
        "breakdown": groups_as_json(groups),
        "published": [
            {"method": row.method, "source": row.source, "metrics": dict(row.metrics)} for row in evaluation.published
        ],
    }
