"""The best row of a family, chosen on one half of the queries and reported on the other.

Taking the best layer or normalization is a choice. If it were made on the queries that are then reported, it would
favour the method with the most rows to choose from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ftrace.evaluation.options import known_name
from ftrace.evaluation.retrieval.evaluation import Evaluation, RunMetrics
from ftrace.evaluation.retrieval.metrics import LOWER_IS_BETTER, METRICS


@dataclass(frozen=True)
class Family:
    """Rows of which the best is to be chosen.

    Args:
        name: Name of the store, or pattern, that all rows share.
        rows: Names of the rows.
        metric: Metric by which the best row is chosen.
    """

    name: str
    rows: tuple[str, ...]
    metric: str

    @property
    def row(self) -> str:
        """Name of the chosen row."""
        return f"best of {self.name}"


def families(choose: Sequence[str], kinds: dict[str, list[str]]) -> list[Family]:
    """Parse the option ``--choose``.

    Args:
        choose: ``PATTERN:METRIC`` for the best of all rows whose names match a pattern like those of file names;
            ``METRIC`` alone for the best kind of each store that has several.
        kinds: For each store's name, the names of its rows.

    Raises:
        ValueError: If a metric is unknown, a pattern matches no row, or there is nothing to choose from.

    Example:
        >>> families(["P@10"], {"embed": ["embed 0", "embed 1"], "bm25": ["bm25"]})
        [Family(name='embed', rows=('embed 0', 'embed 1'), metric='P@10')]
    """
    names = [row for rows in kinds.values() for row in rows]
    parsed: list[Family] = []
    for option in choose:
        pattern, _, metric = option.rpartition(":")
        known_name(metric, METRICS, "choose")
        if pattern:
            rows = tuple(name for name in names if fnmatchcase(name, pattern))
            if not rows:
                raise ValueError(f"choose: expected a pattern of rows, found {pattern!r}; there are {names}")
            parsed.append(Family(pattern, rows, metric))
        else:
            several = [Family(store, tuple(rows), metric) for store, rows in kinds.items() if len(rows) > 1]
            if not several:
                raise ValueError(f"choose: expected a store of several kinds to choose from, found only {names}")
            parsed += several
    counts = Counter(family.name for family in parsed)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(f"choose: expected one metric for each family, found several for {repeated[0]!r}")
    return parsed


def choose_best(evaluation: Evaluation, chosen_from: Sequence[Family]) -> Evaluation:
    """Choose the best row of each family on the development half of the queries, and report it on the other half.

    Args:
        evaluation: The evaluation of all queries, of one or several runs; the same row is chosen for all runs.
        chosen_from: The families.

    Returns:
        The evaluation of the report half, with a row ``best of ...`` for each family.

    Raises:
        ValueError: If a half has no queries.
    """
    development, report = evaluation.in_half("development"), evaluation.in_half("report")
    best, notes = {}, list(evaluation.notes)
    for family in chosen_from:
        sign = -1 if family.metric in LOWER_IS_BETTER else 1
        means = {name: development.estimates[name][family.metric].mean for name in family.rows}
        winner = max(means, key=lambda name: sign * means[name])  # of equals, the first
        best[family.row] = winner
        notes.append(
            f"{family.row}: {winner}, of {len(family.rows)}, by {family.metric} on the development half "
            f"({100 * means[winner]:.1f} there)"
        )
    hidden = frozenset(name for family in chosen_from for name in family.rows)
    runs = tuple(_with_rows(run, best) for run in report.runs)
    return replace(report, runs=runs, notes=tuple(notes), hidden=hidden)


def _with_rows(run: RunMetrics, best: dict[str, str]) -> RunMetrics:
    """Put the best rows before all others, under their new names."""
    return replace(run, rows={**{name: run.rows[winner] for name, winner in best.items()}, **run.rows})
