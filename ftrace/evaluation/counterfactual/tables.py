"""Tables of counterfactuals for the terminal and as files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.text import Text

from ftrace.evaluation.counterfactual.lds import mean_over_queries, noise_free
from ftrace.evaluation.counterfactual.subsets import NotFinite
from ftrace.evaluation.estimates import Estimate
from ftrace.evaluation.files import nan_as_null, replace_csv, replace_text
from ftrace.evaluation.formatting import markdown_grid, mean_and_rest, plain_table
from ftrace.evaluation.queries import EvaluatedQueries
from ftrace.shown_text import markdown_text, plain

ANOTHER, NOISE_FREE = "another training", "noise-free prediction, at most"
_EFFECTS = {
    "rise": "rise of the loss, nats",
    "fall": "fall of the probability",
    "proponents": "of the proponents",
    "rows": "rows",
}


@dataclass(frozen=True)
class Counterfactual:
    """The results of retraining without some of the data.

    Args:
        settings: The settings of the retrainings.
        queries: The queries whose losses scores are to predict.
        scores: For each row of the first table, each column's values, ``[Q]``.
        reliability: The same columns for one training predicted by another; empty if there was only one.
        leave_out_queries: The queries whose examples were left out.
        effects: For each kind of examples left out and each row, the effects, ``[Q]``.
        seed: Seed of the resampling.
        num_ranked: Number of subsets that each query's LDS is taken over, ``[Q]``, by column of the first table.
        not_finite: Losses that were left out of the "LDS" and of the "ceiling" because they are NaN or infinite.
    """

    settings: Mapping[str, Any]
    queries: EvaluatedQueries
    scores: Mapping[str, Mapping[str, np.ndarray]]
    reliability: Mapping[str, np.ndarray]
    leave_out_queries: EvaluatedQueries
    effects: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
    seed: int = 0
    num_ranked: Mapping[str, np.ndarray] = field(default_factory=dict)
    not_finite: Mapping[str, NotFinite] = field(default_factory=dict)

    def score_estimates(self) -> dict[str, dict[str, Estimate]]:
        """Estimate each column's mean in each row of the first table, including the ceiling."""
        rows = {row: mean_over_queries(columns, self.queries, self.seed) for row, columns in self.scores.items()}
        if self.reliability:
            another = mean_over_queries(self.reliability, self.queries, self.seed)
            rows[ANOTHER] = another
            rows[NOISE_FREE] = {column: noise_free(estimate) for column, estimate in another.items()}
        return rows

    def effect_estimates(self) -> dict[str, dict[str, dict[str, Estimate]]]:
        """Estimate each effect's mean, for each kind of examples left out and each row."""
        return {
            left_out: {
                row: mean_over_queries(columns, self.leave_out_queries, self.seed) for row, columns in rows.items()
            }
            for left_out, rows in self.effects.items()
        }

    @property
    def notes(self) -> list[str]:
        """Notes for readers of the tables."""
        notes = [
            "LDS: rank correlation over subsets of the kept examples' summed scores with -loss, mean over queries",
            "fact kept: over those subsets only that have rows which state the query's fact",
            "ground truth: 1 for the rows that state the query's fact, else 0",
        ]
        if not any(len(columns) > 1 for columns in self.scores.values()):
            del notes[1]
        if self.reliability:
            notes += [
                f"{ANOTHER}: one training's losses against those of the same subset in another order",
                f"{NOISE_FREE}: the root of it, which is what an LDS can reach",
            ]
        if self.effects:
            notes.append("left out: against the run itself, retrained without these rows in its own order")
        return [*notes, "95% intervals: over facts, for these subsets", *self._missing()]

    def _missing(self) -> Iterator[str]:
        """Say what is not in the figures, and why."""
        for figure, bad in self.not_finite.items():
            if bad.losses:
                yield f"not in the {figure}: {bad}, as when a training diverges"
        scores = _of_subsets(self)
        few: dict[str, list[str]] = {}
        for row, columns in scores.items():
            for column, values in columns.items():
                if count := int((~np.isfinite(values)).sum()):
                    where = f"not in the mean of {column!r}: {count} of {len(values)} queries"
                    few.setdefault(f"{where}, for which fewer than three subsets are left to rank", []).append(row)
        yield from (f"{note} ({', '.join(rows)})" if len(rows) < len(scores) else note for note, rows in few.items())
        for left_out, of_rows in self.effects.items():
            for row, columns in of_rows.items():
                if count := int((~np.isfinite(columns["rise"])).sum()):
                    num_queries = len(columns["rise"])
                    yield (
                        f"left out, {left_out}: not in the means of {row!r}: {count} of {num_queries} queries, whose "
                        "loss with or without these rows is NaN or infinite"
                    )
        tables = [self.score_estimates(), *self.effect_estimates().values()]
        estimates = [estimate for rows in tables for row in rows.values() for estimate in row.values()]
        if any(math.isnan(estimate.mean) for estimate in estimates):
            yield "NaN: no query has enough left"


def render_counterfactual(results: Counterfactual) -> RenderableType:
    """Render the tables for the terminal."""
    parts: list[RenderableType] = []
    for title, rows, columns in _tables(results):
        table = plain_table(title, "method", list(columns.values()))
        for row, estimates in rows.items():
            style = "dim" if row in (ANOTHER, NOISE_FREE) else None
            table.add_row(row, *[_half(name, estimates[name]) for name in columns], style=style)
        parts.append(table)
    return Stack(*parts, *[Text(f" {plain(note)}", style="dim") for note in results.notes])


def write_counterfactual(results: Counterfactual, output_dir: Path) -> list[Path]:
    """Write the tables to a folder.

        table.md        the tables, with the ends of 95% intervals
        table.csv       a line for each figure, with the number of queries that it is a mean over
        table.json      the same, and settings
        per_query.csv   the figures of every query, and the number of subsets of each LDS

    Returns:
        The paths of the files, in this order.
    """
    files = [output_dir / name for name in ("table.md", "table.csv", "table.json", "per_query.csv")]
    replace_text(files[0], _markdown(results))
    replace_csv(files[1], _csv_rows(results))
    replace_text(files[2], json.dumps(_as_json(results), indent=2, allow_nan=False) + "\n")
    replace_csv(files[3], _query_rows(results))
    return files


def _tables(results: Counterfactual) -> Iterable[tuple[str, Mapping[str, Mapping[str, Estimate]], dict[str, str]]]:
    """Yield each table's title, rows, and the titles of its columns."""
    settings = results.settings
    scores = results.score_estimates()
    title = (
        f"{settings['subsets']} random subsets, {settings['keep']:.0%} of {settings['unit']}s kept; "
        f"{len(results.queries)} queries ({results.queries.description})"
    )
    yield title, scores, {column: column for column in next(iter(scores.values()))}
    for left_out, rows in results.effect_estimates().items():
        yield f"Left out: {left_out}; {len(results.leave_out_queries)} queries", rows, _EFFECTS


def _half(column: str, estimate: Estimate) -> str | Text:
    """Format a mean and half the width of its interval, which for the ceiling is not symmetric."""
    if math.isnan(estimate.mean):
        return "NaN"
    if column == "rows":
        return f"{estimate.mean:.0f}"
    half = (estimate.high - estimate.low) / 2
    places = 2 if column == "rise" else 3
    rest = " " * (places + 3) if math.isnan(half) else f"±{half:.{places}f}"
    return mean_and_rest(f"{estimate.mean:.{places}f}", f" {rest}")


def _ends(column: str, estimate: Estimate) -> str:
    if math.isnan(estimate.mean):
        return "NaN"
    if column == "rows":
        return f"{estimate.mean:.0f}"
    ends = "" if math.isnan(estimate.low) else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.mean:.3f}{ends}"


def _markdown(results: Counterfactual) -> str:
    lines: list[str] = []
    for title, rows, columns in _tables(results):
        cells = {row: [_ends(name, estimates[name]) for name in columns] for row, estimates in rows.items()}
        lines += [f"{markdown_text(title)}.", "", *markdown_grid(list(columns.values()), cells), ""]
    return "\n".join([*lines, *[f"- {markdown_text(note)}" for note in results.notes]]) + "\n"


def _csv_rows(results: Counterfactual) -> Iterable[Sequence[Any]]:
    yield ["table", "method", "figure", "mean", "low", "high", "queries"]
    for title, rows, columns in _tables(results):
        table, of_rows = ("subsets", _of_subsets(results))
        if title.startswith("Left out: "):
            table = title.split("; ")[0].removeprefix("Left out: ")
            of_rows = results.effects[table]
        for row, estimates in rows.items():
            values = of_rows[ANOTHER if row == NOISE_FREE else row]
            for name in columns:
                estimate = estimates[name]
                values_and_ends = (estimate.mean, estimate.low, estimate.high)
                ends = ["" if math.isnan(value) else value for value in values_and_ends]
                yield [table, row, name, *ends, int(np.isfinite(values[name]).sum())]


def _query_rows(results: Counterfactual) -> Iterable[Sequence[Any]]:
    yield ["table", "method", "query_id", "fact", "figure", "value", "subsets"]
    tables = {"subsets": (_of_subsets(results), results.queries)}
    tables |= {table: (rows, results.leave_out_queries) for table, rows in results.effects.items()}
    for table, (rows, queries) in tables.items():
        for row, columns in rows.items():
            for name, values in columns.items():
                counts = results.num_ranked.get(name) if table == "subsets" and row != ANOTHER else None
                ranked = [""] * len(queries) if counts is None else counts.tolist()
                for query, fact, value, count in zip(
                    queries.query_ids.tolist(), queries.facts, values.tolist(), ranked, strict=True
                ):
                    yield [table, row, query, fact, name, "" if math.isnan(value) else value, count]


def _of_subsets(results: Counterfactual) -> Mapping[str, Mapping[str, np.ndarray]]:
    """Return the values that the first table's figures are means of, ``[Q]`` each."""
    return {**results.scores, **({ANOTHER: results.reliability} if results.reliability else {})}


def _as_json(results: Counterfactual) -> dict[str, Any]:
    return {
        "settings": dict(results.settings),
        "num_queries": len(results.queries),
        "queries": results.queries.description,
        "leave_out_queries": results.leave_out_queries.query_ids.tolist() if results.effects else [],
        "notes": results.notes,
        "seed": results.seed,
        "not_finite": {figure: asdict(counts) for figure, counts in results.not_finite.items()},
        "subsets": {row: _estimates(columns) for row, columns in results.score_estimates().items()},
        "left_out": {
            left_out: {row: _estimates(columns) for row, columns in rows.items()}
            for left_out, rows in results.effect_estimates().items()
        },
    }


def _estimates(columns: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    """Turn estimates into JSON, with null for NaN."""
    return {
        name: nan_as_null({"mean": estimate.mean, "low": estimate.low, "high": estimate.high})
        for name, estimate in columns.items()
    }
