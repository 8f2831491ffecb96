"""Tail-patch tables for the terminal and as files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from ftrace.evaluation.estimates import Estimate
from ftrace.evaluation.files import nan_as_null, replace_csv, replace_text
from ftrace.evaluation.formatting import markdown_grid, mean_and_rest, percent, plain_table, with_interval
from ftrace.evaluation.tail_patch.example_kinds import KINDS, ExampleKinds
from ftrace.evaluation.tail_patch.summaries import OfKind, TailPatchRow, TailPatchTable
from ftrace.shown_numbers import points
from ftrace.shown_text import markdown_text, plain

if TYPE_CHECKING:
    from ftrace.evaluation.tail_patch.patching import PatchedPairs  # imports torch

_COLUMNS = ("rise", "minus random", "raised")


def render_tail_patch(table: TailPatchTable) -> RenderableType:
    """Render mean rises, and below them the shares and mean rises of each kind of example."""
    main = plain_table(_title(table), "method", _COLUMNS)
    best = max((row.rise.mean for row in table.rows.values() if not math.isnan(row.rise.mean)), default=math.nan)
    for name, row in table.rows.items():
        rise = points(row.rise.mean) or "NaN"
        beyond = row.beyond_random
        main.add_row(
            name,
            mean_and_rest(rise, _half(row.rise), bold=row.rise.mean == best),
            "" if beyond is None else mean_and_rest(points(beyond.mean), _half(beyond)),
            mean_and_rest(percent(row.raised.mean), _half(row.raised, digits=1)),
        )
    parts: list[RenderableType] = [main, *(Text(f" {plain(note)}", style="dim") for note in _notes(table))]
    if any(row.kinds for row in table.rows.values()):
        title = f"\nWhat kind of examples the top {table.k} are: percent of them, and their mean rise"
        kinds = plain_table(title, "method", [kind.replace(" ", "\n", 1) for kind in KINDS])
        for name, row in table.rows.items():
            kinds.add_row(name, *map(_of_kind, row.kinds))
        parts.append(kinds)
    return Group(*parts)


def write_tail_patch(
    table: TailPatchTable, patched: PatchedPairs, output_dir: Path, kinds: ExampleKinds | None = None
) -> list[Path]:
    """Write a table to a folder.

        table.md     the tables, in percent and percentage points, with the ends of 95% intervals
        table.csv    a line for each method, as shares of 1
        table.json   the same, each kind of example, and settings
        pairs.csv    every pair of query and example, with its kind if the data tell kinds

    Returns:
        The paths of the files, in this order.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    files = [output_dir / name for name in ("table.md", "table.csv", "table.json", "pairs.csv")]
    replace_text(files[0], _markdown(table))
    replace_csv(files[1], _csv_rows(table))
    replace_text(files[2], json.dumps(nan_as_null(_as_json(table, patched)), indent=2, allow_nan=False) + "\n")
    replace_csv(files[3], _pairs(patched, kinds))
    return files


def _title(table: TailPatchTable) -> str:
    asked = f"{len(table.queries)} queries ({table.queries.description})"
    return f"Tail-patch of the top {table.k}, in percentage points: {asked}, {table.snapshot}"


def _notes(table: TailPatchTable) -> list[str]:
    return [
        "rise: of the probability of a query's target by one step on one example",
        f"probability before: {percent(table.probability.mean)}%; raised: percent of examples that raise it",
        f"step: {table.step}; without momentum, weight decay or clipping",
        "±: half the 95% interval over facts; minus random: paired by query",
        *table.notes,
    ]


def _half(estimate: Estimate, digits: int = 2) -> str:
    half = (estimate.high - estimate.low) / 2
    return " " * (4 + digits) if math.isnan(half) else f" ±{f'{100 * half:.{digits}f}':<{2 + digits}}"


def _of_kind(kind: OfKind) -> Text:
    if not kind.count:
        return Text("0.0      ")
    return mean_and_rest(percent(kind.share.mean), f" {points(kind.rise.mean) or ' ' * 5}")


def _points_with_ends(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    ends = "" if math.isnan(estimate.low) else f" [{points(estimate.low)}, {points(estimate.high)}]"
    return f"{points(estimate.mean) or 'NaN'}{ends}"


def _markdown(table: TailPatchTable) -> str:
    rows = {
        name: [*map(_points_with_ends, (row.rise, row.beyond_random)), with_interval(row.raised)]
        for name, row in table.rows.items()
    }
    notes = [f"- {markdown_text(note)}" for note in _notes(table)]
    lines = [f"{markdown_text(_title(table))}.", "", *markdown_grid(_COLUMNS, rows), "", *notes]
    if any(row.kinds for row in table.rows.values()):
        of_kinds = {
            name: [
                f"{with_interval(kind.share)}: {_points_with_ends(kind.rise)}" if kind.count else "0.0"
                for kind in row.kinds
            ]
            for name, row in table.rows.items()
        }
        lines += ["", "By kind of example, percent of them and their mean rise:", "", *markdown_grid(KINDS, of_kinds)]
    return "\n".join(lines) + "\n"


def _csv_rows(table: TailPatchTable) -> Iterator[Sequence[Any]]:
    names = ["rise", "minus random", "raised"]
    of_kinds = [f"{what} of {kind}" for kind in KINDS for what in ("share", "rise")]
    has_kinds = any(row.kinds for row in table.rows.values())
    yield ["method", *_with_ends([*names, *(of_kinds if has_kinds else [])])]
    for name, row in table.rows.items():
        estimates = [row.rise, row.beyond_random, row.raised]
        estimates += [estimate for kind in row.kinds for estimate in (kind.share, kind.rise)]
        as_dicts = [_estimate(estimate) or dict.fromkeys("mlh", math.nan) for estimate in estimates]
        cells = [value for ends in as_dicts for value in ends.values()]
        yield [name, *("" if math.isnan(value) else value for value in cells)]


def _with_ends(names: Sequence[str]) -> list[str]:
    return [f"{name}{end}" for name in names for end in ("", " low", " high")]


def _as_json(table: TailPatchTable, patched: PatchedPairs) -> dict[str, Any]:
    return {
        "queries": table.queries.description,
        "num_queries": len(table.queries),
        "k": table.k,
        "snapshot": table.snapshot,
        "step": {**table.settings, "description": table.step},
        "seed": table.seed,
        "resamples": table.resamples,
        "notes": list(table.notes),
        "num_pairs": len(patched.query_ids),
        "probability": _estimate(table.probability),
        "rows": {name: _row(row) for name, row in table.rows.items()},
    }


def _row(row: TailPatchRow) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "rise": _estimate(row.rise),
        "minus_random": _estimate(row.beyond_random),
        "raised": _estimate(row.raised),
    }
    if row.kinds:
        fields["kinds"] = {
            name: {"count": kind.count, "share": _estimate(kind.share), "rise": _estimate(kind.rise)}
            for name, kind in zip(KINDS, row.kinds, strict=True)
        }
    return fields


def _estimate(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}


def _pairs(patched: PatchedPairs, kinds: ExampleKinds | None) -> Iterator[Sequence[Any]]:
    yield ["query_id", "example_id", "before", "after", *(["kind"] if kinds else [])]
    columns = (patched.query_ids, patched.example_ids, patched.before, patched.after)
    for query, example, before, after in zip(*(column.tolist() for column in columns), strict=True):
        known = ["" if math.isnan(value) else value for value in (before, after)]
        yield [query, example, *known, *([KINDS[int(kinds.of(query, [example])[0])]] if kinds else [])]
