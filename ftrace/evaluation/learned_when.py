"""When a query was learned, and whether a look at the last snapshot can still tell who taught it.

A fact that has long been learned leaves hardly any gradient at the end of training (saturation), so scores of the last
snapshot should agree less with what happened, the earlier a query was learned. Here that is measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.table import Table
from torchmetrics.functional import spearman_corrcoef

from ftrace.evaluation.ranking import expected_hits
from ftrace.evaluation.table import replace_text
from ftrace.scores import ScoreStore

K = 10


@dataclass(frozen=True)
class LearnedBin:
    """Queries that were learned at about the same time.

    Args:
        first: The earliest step at which one was first right; -1 for those that never were.
        last: The latest one.
        num_queries: How many they are.
        online_precision: P@10 of the online scores.
        snapshot_precision: P@10 of the snapshot's scores.
        rank_correlation: Spearman's, of the snapshot's scores with the online ones over all examples, averaged over
            queries.
        before: Share of the absolute online scores that was gained before the query was first right; None where scores
            were not broken down so.
    """

    first: int
    last: int
    num_queries: int
    online_precision: float
    snapshot_precision: float
    rank_correlation: float
    before: float | None


def learned_when(
    online: ScoreStore,
    snapshot: ScoreStore,
    proponents: Mapping[int, Sequence[int] | np.ndarray],
    bins: int = 4,
    online_kind: str = "cosine",
    snapshot_kind: str = "cosine",
) -> list[LearnedBin]:
    """Compare a snapshot's scores with the online ones, by the step at which queries were learned.

    Args:
        online: Scores that were summed up during training, with a ledger.
        snapshot: Scores of the same examples and queries at the last snapshot.
        proponents: For each query, its ground-truth proponents' example ids.
        bins: Into how many bins of about as many queries each.
        online_kind: Which of the online scores.
        snapshot_kind: Which of the snapshot's.

    Returns:
        Bins from early to late; last, queries that never were right, if there are any.

    Raises:
        ValueError: If there is no ledger, it doesn't know when queries were learned, or the stores are of different
            examples.
    """
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, found {bins}")
    if online.ledger is None or np.isnan(online.ledger["learned"]).all():
        raise ValueError(
            f"{online.path}: expected a ledger that knows when queries were right. Train with ledger=True "
            "and a module that has learned(batch), or query_learned=..."
        )
    if not np.array_equal(online.example_ids, snapshot.example_ids):
        raise ValueError(f"expected stores of the same examples, found other ones in {online.path} and {snapshot.path}")
    steps = dict(zip(online.ledger.query_ids.tolist(), online.ledger.learned_steps().tolist(), strict=True))
    asked = [query for query in steps if query in proponents]
    learned = sorted((query for query in asked if steps[query] >= 0), key=lambda query: (steps[query], query))
    groups = [list(group) for group in np.array_split(np.array(learned, dtype=np.int64), bins) if len(group)]
    never = [query for query in asked if steps[query] < 0]
    found = []
    for group in [*groups, *([never] if never else [])]:
        rows = [_of_query(online, snapshot, int(q), proponents[int(q)], online_kind, snapshot_kind) for q in group]
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if rows[0][name] is not None}
        of_group = [steps[int(query)] for query in group]
        found.append(LearnedBin(min(of_group), max(of_group), len(group), **{"before": None, **means}))  # type: ignore[arg-type]
    return found


def _of_query(
    online: ScoreStore, snapshot: ScoreStore, query: int, proponents: Sequence[int] | np.ndarray, kind: str, other: str
) -> dict[str, float | None]:
    first = torch.from_numpy(online.scores(query, kind)).double()
    second = torch.from_numpy(snapshot.scores(query, other)).double()
    relevant = torch.from_numpy(np.isin(online.example_ids, list(proponents)))
    before = None
    if "learned" in online.breakdown:
        parts = {name: float(np.abs(values).sum()) for name, values in online.parts(query, "learned", kind).items()}
        total = sum(parts.values())
        before = parts.get("before", 0.0) / total if total else 0.0
    return {
        "online_precision": float(expected_hits(first, relevant, K)) / K,
        "snapshot_precision": float(expected_hits(second, relevant, K)) / K,
        "rank_correlation": float(spearman_corrcoef(first, second)),
        "before": before,
    }


def render_learned_when(bins: Sequence[LearnedBin]) -> Table:
    """The table as a person reads it."""
    table = Table(title="Who taught it? Asked online, and at the last snapshot", box=box.SIMPLE_HEAD, padding=0)
    for name in ("learned at step", "queries", "P@10 online", "P@10 snapshot", "rank correlation", "gained before"):
        table.add_column(name, justify="right")
    for one in bins:
        when = "never" if one.first < 0 else f"{one.first} to {one.last}"
        before = "" if one.before is None else f"{one.before:.0%}"
        table.add_row(
            when, str(one.num_queries), f"{one.online_precision:.1%}", f"{one.snapshot_precision:.1%}",
            f"{one.rank_correlation:.2f}", before,
        )  # fmt: skip
    return table


def write_learned_when(bins: Sequence[LearnedBin], file: Path) -> None:
    """Write the bins as JSON."""
    replace_text(file, json.dumps([asdict(one) for one in bins], indent=2) + "\n")
