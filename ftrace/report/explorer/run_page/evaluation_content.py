"""What a report shows of an evaluation: the table that ``ftrace evaluate`` wrote, or metrics of files of results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ftrace.files.manifests import read_json
from ftrace.report.explorer.format import Evaluation, EvaluationCell, EvaluationRow

FOLDER, TABLE = "evaluation", "table.json"


class _Sizes(TypedDict):
    least: int
    most: int


class _Published(TypedDict):
    method: str
    source: str
    metrics: dict[str, float]


class _Table(TypedDict):
    """What is relied on of the table that an evaluation wrote."""

    queries: str
    num_queries: int
    rows: dict[str, dict[str, float | None]]
    intervals: NotRequired[dict[str, dict[str, tuple[float | None, float | None]]]]
    ceiling: NotRequired[dict[str, float | None]]
    published: NotRequired[list[_Published]]
    num_runs: NotRequired[int]
    num_candidates: NotRequired[_Sizes]
    without_proponents: NotRequired[int | None]
    half: NotRequired[str]
    level: NotRequired[str]
    notes: NotRequired[list[str]]


def evaluation_of_run(run: Path) -> Evaluation | None:
    """Read the evaluation of a run's stores; None if there is none.

    A table that is damaged, or of another version, is no error: there is a note that says so.

    Args:
        run: The run's folder.
    """
    file = run / FOLDER / TABLE
    if not file.exists():
        return None
    try:
        return _of_table(read_json(file, _Table, digest=False))  # of an older ftrace, it has none
    except (OSError, ValueError) as error:
        reason = str(error).replace(str(file), TABLE)
        note = f"{FOLDER}/{TABLE} can't be read ({type(error).__name__}: {reason}): evaluate the stores again"
        return {"title": "An evaluation that can't be read", "metrics": [], "rows": [], "ceiling": [], "notes": [note]}


def evaluation_of_results(files: Mapping[str, Path]) -> Evaluation:
    """Compute the metrics of files of results over the queries that have labels.

    Args:
        files: Files with labels, by the name of their rows.
    """
    from ftrace.evaluation.results import evaluate_results

    try:
        evaluation = evaluate_results(files)
    except ValueError as error:  # such as files of different queries
        note = str(error)
        for file in files.values():
            note = note.replace(str(file), file.name)
        return {"title": "Files that can't be compared", "metrics": [], "rows": [], "ceiling": [], "notes": [note]}
    rows: list[EvaluationRow] = [
        {
            "name": name,
            "cells": [
                _cell(estimates[metric].mean, (estimates[metric].low, estimates[metric].high))
                for metric in evaluation.metrics
            ],
        }
        for name, estimates in evaluation.estimates.items()
    ]
    return {
        "title": f"{len(evaluation.queries):,} queries with labels",
        "metrics": list(evaluation.metrics),
        "rows": rows,
        "ceiling": [None] * len(evaluation.metrics),
        "notes": list(evaluation.notes),
    }


def _of_table(table: Mapping[str, Any]) -> Evaluation:
    """Return the main metrics of what :func:`ftrace.evaluation.retrieval.write_tables` wrote."""
    from ftrace.evaluation.retrieval.metrics import MAIN

    means, intervals = table["rows"], table.get("intervals", {})
    metrics = [metric for metric in MAIN if any(metric in row for row in means.values())]
    rows: list[EvaluationRow] = [
        {
            "name": str(name),
            "cells": [_cell(row.get(metric), intervals.get(name, {}).get(metric)) for metric in metrics],
        }
        for name, row in means.items()
    ]
    published = table.get("published", [])
    rows += [
        {"name": f"{row['method']} (published)", "cells": [_cell(row["metrics"].get(metric)) for metric in metrics]}
        for row in published
    ]
    ceiling = table.get("ceiling", {})
    notes = ["with the ends of 95% intervals over facts; ties in expectation; R@n: n is a query's own number"]
    if int(table.get("num_runs", 1)) > 1:
        notes.append(f"means of {table['num_runs']} runs")
    if published:
        notes.append(f"published: {published[0]['source']}; full-size data, candidate pools")
    return {
        "title": _title(table),
        "metrics": metrics,
        "rows": rows,
        "ceiling": [_share(ceiling.get(metric)) for metric in metrics],
        "notes": [*notes, *map(str, table.get("notes", []))],
    }


def _title(table: Mapping[str, Any]) -> str:
    """Say in one line what was evaluated."""
    from ftrace.evaluation.retrieval.render import title_text

    sizes = table.get("num_candidates")
    return title_text(
        f"{table['num_queries']:,}",
        [str(table["queries"])],
        table.get("half", "all"),
        table.get("without_proponents") or 0,
        None if sizes is None else (sizes["least"], sizes["most"]),
        table.get("level", "row"),
    )


def _cell(mean: float | None, ends: Sequence[float | None] | None = None) -> EvaluationCell:
    low, high = (None, None) if ends is None else ends
    return {"mean": _share(mean), "low": _share(low), "high": _share(high)}


def _share(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
