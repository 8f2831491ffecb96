"""Precision of scores by the step at which queries were learned.

A fact that was learned long ago has hardly any gradient left at the end of training (saturation). So the earlier a
query was learned, the less the scores of the last snapshot should say about what taught it. This measures it for any
scores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.text import Text

from ftrace.arguments import Name, Positive, Seed, checked
from ftrace.console import PlainTable
from ftrace.evaluation.estimates import Estimate, sample_means
from ftrace.evaluation.files import replace_text
from ftrace.evaluation.formatting import mean_and_rest, percent, plain_table
from ftrace.evaluation.queries import EvaluatedQueries
from ftrace.evaluation.retrieval.evaluation import Evaluation, evaluate
from ftrace.evaluation.stores import row_name
from ftrace.scores import Answered, ScoreStore
from ftrace.scores.correlation import finite_correlation, rank_correlation
from ftrace.shown_text import counted

METRIC = "P@10"


@dataclass(frozen=True)
class LearnedMethod:
    """Figures of one row of scores for the queries of a bin.

    Args:
        precision: P@10, with its interval.
        rank_correlation: Spearman's, with the first row's scores over all examples, averaged over the queries for which
            it is defined; NaN where there is none.
        before: Share of the absolute scores that was gained before the query was first right; None where scores are
            not broken down in this way.
        undefined: Number of queries whose rank correlation is undefined, because one side's scores are constant or not
            finite.
    """

    precision: Estimate
    rank_correlation: float
    before: float | None
    undefined: int = 0


@dataclass(frozen=True)
class LearnedBin:
    """Queries that were learned at about the same time.

    Args:
        state: "known": they were right at their first evaluation, before training or when they were added; "learned":
            they were first right at a later one; "never": at none.
        first: The earliest step at which one of them was first right; -1 if none ever was.
        last: The latest such step.
        forgotten: How many of them were right once, but not at the end.
        ceiling: The highest P@10 that any method can reach: queries with few ground-truth proponents keep it below 1.
        methods: Figures by the name of the row.
    """

    state: Literal["known", "learned", "never"]
    first: int
    last: int
    num_queries: int
    forgotten: int
    ceiling: float
    methods: dict[str, LearnedMethod]


@checked
def learned_when(
    stores: Mapping[str, ScoreStore],
    queries: EvaluatedQueries,
    bins: Positive = 4,
    kinds: Sequence[Name] | None = None,
    seed: Seed = 0,
) -> list[LearnedBin]:
    """Compare scores by the step at which queries were learned.

    Args:
        stores: Stores of the same examples, by the name of their rows; one of them records when queries were right.
        queries: The queries; those of which the record knows nothing are left out.
        bins: Number of bins of queries that were learned, which get about equally many of them.
        kinds: Kinds of scores to compare; default: all.
        seed: Seed of the resampling.

    Returns:
        A bin of the queries that were right from the first, if there are any; bins from early to late; then a bin of
        the queries that were never right, if there are any.

    Raises:
        ValueError: If no store records when queries were right, they are of different examples, or none has one of the
            kinds.
    """
    known = _answered(stores)
    names, first = list(stores), next(iter(stores.values()))
    for store in stores.values():
        if not np.array_equal(store.example_ids, first.example_ids):
            raise ValueError(f"expected stores of the same examples, found other ones in {first.path} and {store.path}")
    rows = {
        row_name(name, kind): (stores[name], kind)
        for name in names
        for kind in stores[name].kinds
        if kinds is None or kind in kinds
    }
    if not rows:
        of_stores = sorted({kind for store in stores.values() for kind in store.kinds})
        raise ValueError(f"kinds: expected some of {of_stores}, found {list(kinds or ())}")
    asked = queries.among(known, queries.description)
    evaluation = evaluate(stores, asked)
    answered = [known[query] for query in asked.query_ids.tolist()]
    steps = np.array([-1 if of_query.first_right is None else of_query.first_right for of_query in answered], np.int64)
    was_known = np.array([of_query.was_known for of_query in answered], bool)
    order = np.lexsort((asked.query_ids, steps))
    groups: list[tuple[Literal["known", "learned", "never"], np.ndarray]] = [
        ("known", order[was_known[order]]),
        *(("learned", group) for group in np.array_split(order[(steps[order] >= 0) & ~was_known[order]], bins)),
        ("never", np.flatnonzero(steps < 0)),
    ]
    return [
        _bin(evaluation, rows, state, group, [answered[place] for place in group], seed)
        for state, group in groups
        if len(group)
    ]


def _answered(stores: Mapping[str, ScoreStore]) -> dict[int, Answered]:
    """Return when each query of which it is known was right, as the first store that records it says."""
    for store in stores.values():
        if store.answers is not None:
            states = store.answers.states()
            return {query: answered for query, answered in states.items() if answered.state != "unknown"}
    raise ValueError(
        f"{', '.join(str(store.path) for store in stores.values())}: expected a store that records when queries were "
        "right. Train with OnlineTracIn and a module that has learned(batch), or query_learned=..."
    )


def _bin(
    evaluation: Evaluation,
    rows: Mapping[str, tuple[ScoreStore, str]],
    state: Literal["known", "learned", "never"],
    group: np.ndarray,
    answered: Sequence[Answered],
    seed: int,
) -> LearnedBin:
    run = evaluation.runs[0]
    query_ids = run.queries.query_ids[group].tolist()
    facts = [run.queries.facts[query] for query in group]
    reference = next(iter(rows.values()))
    values = np.stack([run.rows[name][METRIC][group] for name in rows], axis=1)
    methods = {}
    for (name, row), precision in zip(
        rows.items(), sample_means([values], [facts], seed=seed).estimates(), strict=True
    ):
        correlations = np.array([_correlation(reference, row, query) for query in query_ids])
        is_defined = ~np.isnan(correlations)
        before = [share for query in query_ids if (share := _gained_before(*row, query)) is not None]
        methods[name] = LearnedMethod(
            precision,
            float(correlations[is_defined].mean()) if is_defined.any() else math.nan,
            float(np.mean(before)) if before else None,
            int((~is_defined).sum()),
        )
    ceiling = float(run.ceiling[METRIC][group].mean())
    steps = [-1 if of_query.first_right is None else of_query.first_right for of_query in answered]
    forgotten = sum(of_query.state == "forgotten" for of_query in answered)
    return LearnedBin(state, min(steps), max(steps), len(group), forgotten, ceiling, methods)


def _correlation(first: tuple[ScoreStore, str], second: tuple[ScoreStore, str], query: int) -> float:
    if first == second:
        return 1.0
    return finite_correlation(rank_correlation, *(store.scores(query, kind) for store, kind in (first, second)))


def _gained_before(store: ScoreStore, kind: str, query: int) -> float | None:
    if "learned" not in store.breakdown:
        return None
    parts = {name: float(np.abs(values).sum()) for name, values in store.parts(query, "learned", kind).items()}
    total = sum(parts.values())
    return parts.get("before", 0.0) / total if total else 0.0


def render_learned_when(bins: Sequence[LearnedBin]) -> PlainTable:
    """Render a table with a column for each bin."""
    title = f"{METRIC} in percent, by the step at which a query was first right"
    columns = [f"{when(learned_bin)}\n{of_bin(learned_bin)}" for learned_bin in bins]
    table = plain_table(title, "scores", columns)
    for name in bins[0].methods:
        table.add_row(name, *[_precision(learned_bin.methods[name].precision) for learned_bin in bins])
    table.add_row("ceiling", *[f"{percent(learned_bin.ceiling)}      " for learned_bin in bins], style="dim")
    first, *others = bins[0].methods
    if others:
        table.add_section()
        table.add_row(f"rank correlation with {first}", style="dim")
        for name in others:
            cells = [f"{learned_bin.methods[name].rank_correlation:.2f}      " for learned_bin in bins]
            table.add_row(f"  {name}", *cells, style="dim")
            left_out = [learned_bin.methods[name].undefined for learned_bin in bins]
            if any(left_out):
                cells = [f"{count}      " if count else "" for count in left_out]
                table.add_row("    queries left out: constant scores", *cells, style="dim")
    broken_down = [name for name, method in bins[0].methods.items() if method.before is not None]
    if broken_down:
        table.add_section()
        table.add_row("gained before it was right", style="dim")
        for name in broken_down:
            shares = [learned_bin.methods[name].before for learned_bin in bins]
            cells = ["" if share is None else f"{share:.0%}      " for share in shares]
            table.add_row(f"  {name}", *cells, style="dim")
    return table


def when(learned_bin: LearnedBin) -> str:
    """Name the steps of a bin."""
    first, last = learned_bin.first, learned_bin.last
    if learned_bin.state == "never":
        return "never"
    if learned_bin.state == "known":
        return (
            "before training" if last == 0 else f"known by {first}" if first == last else f"known by {first} to {last}"
        )
    return f"step {first}" if first == last else f"{first} to {last}"


def of_bin(learned_bin: LearnedBin) -> str:
    """Say how many queries a bin has, and how many of them were forgotten."""
    count = counted(learned_bin.num_queries, "query", "queries")
    return f"{count}, {learned_bin.forgotten} forgotten" if learned_bin.forgotten else count


def _precision(estimate: Estimate) -> Text:
    half = (estimate.high - estimate.low) / 2
    return mean_and_rest(percent(estimate.mean), "" if math.isnan(half) else f" ±{100 * half:<4.1f}")


def write_learned_when(bins: Sequence[LearnedBin], file: Path) -> None:
    """Write the bins as JSON; unknown values are null."""
    written = [asdict(learned_bin) for learned_bin in bins]
    for fields in written:
        for method in fields["methods"].values():
            method["precision"] = {
                name: None if value is None or math.isnan(value) else value
                for name, value in method["precision"].items()
            }
            if math.isnan(method["rank_correlation"]):
                method["rank_correlation"] = None
            if not method["undefined"]:
                del method["undefined"]
    replace_text(file, json.dumps(written, indent=2, allow_nan=False) + "\n")
