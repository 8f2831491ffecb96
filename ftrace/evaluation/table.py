"""Score stores side by side: every row on the same pool of candidates and the same queries."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.table import Table
from torchmetrics import Metric

from ftrace.evaluation.metrics import MeanReciprocalRank, PrecisionAtK, RecallAtK
from ftrace.scores import ScoreStore

KS = (1, 3, 5, 10, 25)


@dataclass(frozen=True)
class Evaluation:
    """Metrics of several methods.

    Args:
        rows: For each row's name, its metrics by name, as shares of 1.
        ceiling: The best that any method can get, by metric.
        num_queries: Queries that were evaluated.
        num_candidates: Size of the pool.
        queries: Which queries these are, in words.
    """

    rows: dict[str, dict[str, float]]
    ceiling: dict[str, float]
    num_queries: int
    num_candidates: int
    queries: str


def _metrics() -> dict[str, Metric]:
    at_k = {f"P@{k}": PrecisionAtK(k) for k in KS} | {f"R@{k}": RecallAtK(k) for k in KS}
    return {"MRR": MeanReciprocalRank(), **at_k, "R@n": RecallAtK(None)}


def evaluate(
    stores: Mapping[str, ScoreStore], proponents: Mapping[int, Sequence[int] | np.ndarray], queries: str = "all"
) -> Evaluation:
    """Compare score stores; each kind of each store is a row.

    Args:
        stores: Stores by the name of their rows. All must score the same examples.
        proponents: For each query to evaluate, its ground-truth proponents' example ids.
        queries: Which queries these are, in words.

    Raises:
        ValueError: If there is no query, a store scores other examples than the first,
            or lacks a query or a proponent.
    """
    if not proponents:
        raise ValueError(f"expected at least one query to evaluate, found none ({queries})")
    names = list(stores)
    pool = stores[names[0]].example_ids
    for name, store in stores.items():
        if not np.array_equal(store.example_ids, pool):
            raise ValueError(
                f"expected all rows on the same pool of candidates, but {store.path} ({name}) scores "
                f"{len(store.example_ids)} examples and {stores[names[0]].path} {len(pool)}, or others"
            )
        missing = [query for query in proponents if query not in set(store.query_ids.tolist())]
        if missing:
            raise ValueError(f"{store.path}: {len(missing)} evaluated queries have no scores, among them {missing[:3]}")
    pooled = set(pool.tolist())
    lost = sum(example not in pooled for ids in proponents.values() for example in ids)
    if lost:
        raise ValueError(
            f"{stores[names[0]].path}: {lost} ground-truth proponents are not among the examples that it scores, which "
            "would flatter recall. Are these the scores of a whole run?"
        )
    relevant = {query: torch.from_numpy(np.isin(pool, list(ids))) for query, ids in proponents.items()}
    rows: dict[str, dict[str, float]] = {}
    for name, store in stores.items():
        for kind in store.kinds:
            scores = {query: torch.from_numpy(store.scores(query, kind)) for query in proponents}
            rows[name if name == kind else f"{name} {kind}"] = _mean(scores, relevant)
    perfect = {query: relevant[query].double() for query in proponents}
    return Evaluation(rows, _mean(perfect, relevant), len(proponents), len(pool), queries)


def _mean(scores: Mapping[int, torch.Tensor], relevant: Mapping[int, torch.Tensor]) -> dict[str, float]:
    metrics = _metrics()
    for query, of_query in scores.items():
        for metric in metrics.values():
            metric.update(of_query, relevant[query])
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def render_table(evaluation: Evaluation) -> Table:
    """The table as a person reads it, in percent, the best of each column bold; fits 80 columns."""
    title = f"{evaluation.num_queries} queries ({evaluation.queries}), {evaluation.num_candidates:,} candidates each"
    caption = "percent, ties in expectation; n: a query's number of proponents"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=0)
    table.add_column("method", no_wrap=True)
    for name in evaluation.ceiling:
        table.add_column(name, justify="right", no_wrap=True)
    best = {name: max(row[name] for row in evaluation.rows.values()) for name in evaluation.ceiling}
    for method, row in evaluation.rows.items():
        cells = {
            name: f"[bold]{_percent(value)}[/]" if value == best[name] else _percent(value)
            for name, value in row.items()
        }
        table.add_row(method, *cells.values())
    table.add_section()
    table.add_row("ceiling", *map(_percent, evaluation.ceiling.values()), style="dim")
    return table


def _percent(share: float) -> str:
    return "100" if round(share, 3) == 1 else f"{100 * share:.1f}"


def write_tables(evaluation: Evaluation, output_dir: Path) -> list[Path]:
    """Write ``table.json`` and ``table.csv`` with all metrics, as shares of 1.

    Returns:
        The files.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    facts = {
        "queries": evaluation.queries,
        "num_queries": evaluation.num_queries,
        "num_candidates": evaluation.num_candidates,
        "rows": evaluation.rows,
        "ceiling": evaluation.ceiling,
    }
    json_file, csv_file = output_dir / "table.json", output_dir / "table.csv"
    replace_text(json_file, json.dumps(facts, indent=2) + "\n")
    with _temporary(csv_file).open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["method", *evaluation.ceiling])
        for method, row in {**evaluation.rows, "ceiling": evaluation.ceiling}.items():
            writer.writerow([method, *row.values()])
    _temporary(csv_file).rename(csv_file)
    return [json_file, csv_file]


def _temporary(file: Path) -> Path:
    return file.with_name(f".{file.name}.tmp")


def replace_text(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    _temporary(file).write_text(text)
    _temporary(file).rename(file)
