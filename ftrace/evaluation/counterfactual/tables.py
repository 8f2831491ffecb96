"""What leaving data out has shown, as tables for a person and as files."""

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
from rich.markup import escape
from rich.text import Text

from ftrace.evaluation.counterfactual.datamodelling import mean_over_queries, noise_free
from ftrace.evaluation.counterfactual.subsets import NotFinite
from ftrace.evaluation.estimates import Estimate
from ftrace.evaluation.files import replace_csv, replace_text
from ftrace.evaluation.formatting import markdown_grid, plain_table
from ftrace.evaluation.queries import EvaluatedQueries

ANOTHER, NOISE_FREE = "another training", "noise-free prediction, at most"
_EFFECTS = {
    "rise": "rise of the loss, nats",
    "fall": "fall of the probability",
    "proponents": "of the proponents",
    "rows": "rows",
}


@dataclass(frozen=True)
class Counterfactual:
    """What leaving data out has shown.

    Args:
        settings: What was retrained how.
        queries: The queries that scores are to predict.
        scores: For each row, each column of the first table, ``[Q]``.
        reliability: The same of one training that is predicted by another; empty where there was only one.
        leave_out_queries: The queries whose examples were left out.
        effects: For each thing that was left out and each row, its effects, ``[Q]``.
        seed: Of resampling.
        num_ranked: For each column of the first table, over how many subsets each query's LDS is taken, ``[Q]``.
        not_finite: Losses that were left out of the "LDS" and of the "ceiling", as they are NaN or infinite.
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
        """For each row of the first table, the ceiling's included, each column's mean and interval."""
        found = {row: mean_over_queries(columns, self.queries, self.seed) for row, columns in self.scores.items()}
        if self.reliability:
            another = mean_over_queries(self.reliability, self.queries, self.seed)
            found[ANOTHER] = another
            found[NOISE_FREE] = {column: noise_free(one) for column, one in another.items()}
        return found

    def effect_estimates(self) -> dict[str, dict[str, dict[str, Estimate]]]:
        """For each thing that was left out and each row, each effect's mean and interval."""
        return {
            what: {row: mean_over_queries(one, self.leave_out_queries, self.seed) for row, one in rows.items()}
            for what, rows in self.effects.items()
        }

    @property
    def notes(self) -> list[str]:
        """What a reader must know of the figures."""
        found = [
            "LDS: rank correlation over subsets of the kept examples' summed scores with -loss, mean over queries",
            "fact kept: over those subsets only that have rows which state the query's fact",
            "ground truth: 1 for the rows that state the query's fact, else 0",
        ]
        if not any(len(columns) > 1 for columns in self.scores.values()):
            del found[1]
        if self.reliability:
            found += [
                f"{ANOTHER}: one training's losses against those of the same subset in another order",
                f"{NOISE_FREE}: the root of it, which is what an LDS can reach",
            ]
        if self.effects:
            found.append("left out: against the run itself, retrained without these rows in its own order")
        return [*found, "95% intervals: over facts, for these subsets", *self._missing()]

    def _missing(self) -> Iterator[str]:
        """What is not in the figures, and why."""
        for what, bad in self.not_finite.items():
            if bad.losses:
                yield f"not in the {what}: {bad}, as when a training diverges"
        scores = _of_subsets(self)
        few: dict[str, list[str]] = {}
        for row, columns in scores.items():
            for column, values in columns.items():
                if count := int((~np.isfinite(values)).sum()):
                    where = f"not in the mean of {column!r}: {count} of {len(values)} queries"
                    few.setdefault(f"{where}, for which fewer than three subsets are left to rank", []).append(row)
        yield from (f"{note} ({', '.join(rows)})" if len(rows) < len(scores) else note for note, rows in few.items())
        for what, of_rows in self.effects.items():
            for row, columns in of_rows.items():
                if count := int((~np.isfinite(columns["rise"])).sum()):
                    yield (
                        f"left out, {what}: not in the means of {row!r}: {count} of {len(columns['rise'])} queries, "
                        "whose loss with or without these rows is NaN or infinite"
                    )
        means = [one.mean for columns in self.score_estimates().values() for one in columns.values()]
        means += [
            one.mean for of_rows in self.effect_estimates().values() for row in of_rows.values() for one in row.values()
        ]
        if any(map(math.isnan, means)):
            yield "NaN: no query has enough left"


def render_counterfactual(found: Counterfactual) -> RenderableType:
    """The tables as a person reads them."""
    parts: list[RenderableType] = []
    for title, rows, columns in _tables(found):
        table = plain_table(escape(title), "method", list(columns.values()))
        for row, estimates in rows.items():
            style = "dim" if row in (ANOTHER, NOISE_FREE) else None
            table.add_row(escape(row), *[_half(name, estimates[name]) for name in columns], style=style)
        parts.append(table)
    return Stack(*parts, *[Text(f" {note}", style="dim") for note in found.notes])


def write_counterfactual(found: Counterfactual, output_dir: Path) -> list[Path]:
    """Write the tables to a folder.

        table.md        the tables, with the ends of 95% intervals
        table.csv       a line for each figure, with the number of queries that it is a mean over
        table.json      the same, and what was retrained how
        per_query.csv   the figures of every query, and of an LDS over how many subsets

    Returns:
        The files, in this order.
    """
    files = [output_dir / name for name in ("table.md", "table.csv", "table.json", "per_query.csv")]
    replace_text(files[0], _markdown(found))
    replace_csv(files[1], _csv_rows(found))
    replace_text(files[2], json.dumps(_as_json(found), indent=2, allow_nan=False) + "\n")
    replace_csv(files[3], _query_rows(found))
    return files


def _tables(found: Counterfactual) -> Iterable[tuple[str, Mapping[str, Mapping[str, Estimate]], dict[str, str]]]:
    """Each table's title, rows, and the names of its columns."""
    said = found.settings
    scores = found.score_estimates()
    title = (
        f"{said['subsets']} random subsets, {said['keep']:.0%} of {said['unit']}s kept; {len(found.queries)} queries "
        f"({found.queries.description})"
    )
    yield title, scores, {column: column for column in next(iter(scores.values()))}
    for what, rows in found.effect_estimates().items():
        yield f"Left out: {what}; {len(found.leave_out_queries)} queries", rows, _EFFECTS


def _half(column: str, estimate: Estimate) -> str:
    """A mean and half its interval; of the ceiling's ends, which are not even, half their distance."""
    if math.isnan(estimate.mean):
        return "NaN"
    if column == "rows":
        return f"{estimate.mean:.0f}"
    half = (estimate.high - estimate.low) / 2
    places = 2 if column == "rise" else 3
    return f"{estimate.mean:.{places}f} " + (" " * (places + 3) if math.isnan(half) else f"[dim]±{half:.{places}f}[/]")


def _ends(column: str, estimate: Estimate) -> str:
    if math.isnan(estimate.mean):
        return "NaN"
    if column == "rows":
        return f"{estimate.mean:.0f}"
    ends = "" if math.isnan(estimate.low) else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.mean:.3f}{ends}"


def _markdown(found: Counterfactual) -> str:
    lines: list[str] = []
    for title, rows, columns in _tables(found):
        cells = {row: [_ends(name, estimates[name]) for name in columns] for row, estimates in rows.items()}
        lines += [f"{title}.", "", *markdown_grid(list(columns.values()), cells), ""]
    return "\n".join([*lines, *[f"- {note}" for note in found.notes]]) + "\n"


def _csv_rows(found: Counterfactual) -> Iterable[Sequence[Any]]:
    yield ["table", "method", "figure", "mean", "low", "high", "queries"]
    for title, rows, columns in _tables(found):
        what, of_rows = ("subsets", _of_subsets(found))
        if title.startswith("Left out: "):
            what = title.split("; ")[0].removeprefix("Left out: ")
            of_rows = found.effects[what]
        for row, estimates in rows.items():
            values = of_rows[ANOTHER if row == NOISE_FREE else row]
            for name in columns:
                one = estimates[name]
                ends = ["" if math.isnan(value) else value for value in (one.mean, one.low, one.high)]
                yield [what, row, name, *ends, int(np.isfinite(values[name]).sum())]


def _query_rows(found: Counterfactual) -> Iterable[Sequence[Any]]:
    yield ["table", "method", "query_id", "fact", "figure", "value", "subsets"]
    tables = {"subsets": (_of_subsets(found), found.queries)}
    tables |= {what: (rows, found.leave_out_queries) for what, rows in found.effects.items()}
    for what, (rows, queries) in tables.items():
        for row, columns in rows.items():
            for name, values in columns.items():
                counts = found.num_ranked.get(name) if what == "subsets" and row != ANOTHER else None
                ranked = [""] * len(queries) if counts is None else counts.tolist()
                for query, fact, value, count in zip(
                    queries.query_ids.tolist(), queries.facts, values.tolist(), ranked, strict=True
                ):
                    yield [what, row, query, fact, name, "" if math.isnan(value) else value, count]


def _of_subsets(found: Counterfactual) -> Mapping[str, Mapping[str, np.ndarray]]:
    """What the first table's figures are means of, ``[Q]`` each."""
    return {**found.scores, **({ANOTHER: found.reliability} if found.reliability else {})}


def _as_json(found: Counterfactual) -> dict[str, Any]:
    return {
        "settings": dict(found.settings),
        "num_queries": len(found.queries),
        "queries": found.queries.description,
        "leave_out_queries": found.leave_out_queries.query_ids.tolist() if found.effects else [],
        "notes": found.notes,
        "seed": found.seed,
        "not_finite": {what: asdict(one) for what, one in found.not_finite.items()},
        "subsets": {row: _estimates(columns) for row, columns in found.score_estimates().items()},
        "left_out": {
            what: {row: _estimates(columns) for row, columns in rows.items()}
            for what, rows in found.effect_estimates().items()
        },
    }


def _estimates(columns: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    """With null for what is not known, as JSON has no NaN."""
    return {
        name: {
            end: None if math.isnan(value) else value
            for end, value in (("mean", one.mean), ("low", one.low), ("high", one.high))
        }
        for name, one in columns.items()
    }
