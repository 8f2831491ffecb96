"""Writing tables to files, and estimates as JSON."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ftrace.evaluation.estimates import Estimate
from ftrace.evaluation.query_groups import QueryGroup
from ftrace.files.whole_files import whole_file
from ftrace.shown_text import csv_cell


def replace_text(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with whole_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def replace_csv(file: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file whole or not at all; no text in it is a formula to a spreadsheet."""
    with whole_file(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([csv_cell(value) for value in row] for row in rows)


def means_of(rows: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, float]]:
    """Keep only the mean of each estimate."""
    return {name: {metric: estimate.mean for metric, estimate in row.items()} for name, row in rows.items()}


def groups_as_json(groups: Sequence[QueryGroup]) -> list[dict[str, Any]]:
    """Turn the metrics of groups of queries into JSON, with the ends of their intervals."""
    return [
        {
            "by": group.by,
            "group": group.name,
            "num_queries": group.num_queries,
            "rows": means_of(group.estimates),
            "intervals": intervals_of(group.estimates),
        }
        for group in groups
    ]


def intervals_of(rows: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, list[float]]]:
    """Keep only the ends of each estimate's interval."""
    return {
        name: {metric: [estimate.low, estimate.high] for metric, estimate in row.items()} for name, row in rows.items()
    }


def nan_as_null(value: Any) -> Any:
    """Replace NaN by null in nested dictionaries and lists, because JSON has no NaN."""
    if isinstance(value, dict):
        return {name: nan_as_null(item) for name, item in value.items()}
    if isinstance(value, list):
        return [nan_as_null(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
