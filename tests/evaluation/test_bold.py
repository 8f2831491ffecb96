"""Which row of a table is bold, and which of its figures."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from ftrace.evaluation import Estimate, EvaluatedQueries, Evaluation, render_results, render_table
from ftrace.evaluation.results import ResultsEvaluation
from ftrace.evaluation.results.metrics import RESULTS_BY, JudgedResult
from ftrace.evaluation.retrieval.evaluation import RunMetrics
from ftrace.evaluation.retrieval.metrics import METRICS
from ftrace.evaluation.tail_patch import TailPatchRow, TailPatchTable, render_tail_patch
from helpers.bold import bold_figures

COUNT = 20
QUERIES = EvaluatedQueries.of({query: [query] for query in range(COUNT)})
EVEN = np.arange(COUNT) % 2
# The mean of each metric in each row. No row is the best of all, and in R@n two are.
MEANS = {
    "a": {"MRR": 0.9, "P@1": 0.5, "P@10": 0.25, "R@10": 0.5, "R@n": 0.5},
    "b": {"MRR": 0.5, "P@1": 0.75, "P@10": 0.5, "R@10": 0.125, "R@n": 0.625},
    "c": {"MRR": 0.8, "P@1": 0.625, "P@10": 0.125, "R@10": 0.75, "R@n": 0.625},
}


def evaluation() -> Evaluation:
    """Rows of the given means, each query's value the same; only in ``P@1`` do queries of row a differ widely."""
    rows = {
        name: {metric: np.full(COUNT, means.get(metric, 0.5)) for metric in METRICS} for name, means in MEANS.items()
    }
    rows["a"]["P@1"] = EVEN.astype(float)
    ones = np.ones(COUNT)
    run = RunMetrics(QUERIES, rows, dict.fromkeys(METRICS, ones), 40 * ones, ones)
    return Evaluation((run,), resamples=500)


def test_the_best_of_each_column_of_score_stores() -> None:
    assert bold_figures(render_table(evaluation())) == [
        ("a", ["90.0"]),
        ("b", ["75.0", "50.0", "62.5"]),
        ("c", ["75.0", "62.5"]),
    ]


def test_a_hidden_row_is_not_the_best() -> None:
    assert bold_figures(render_table(replace(evaluation(), hidden=frozenset({"b"})))) == [
        ("a", ["90.0", "25.0"]),
        ("c", ["62.5", "75.0", "62.5"]),
    ]


def test_differences_whose_interval_is_without_0() -> None:
    printed = bold_figures(render_table(replace(evaluation(), against="c")))
    assert printed[3:] == [
        ("a", ["+10.0", "+12.5", "-25.0", "-12.5"]),  # not P@1, whose interval holds 0
        ("b", ["-30.0", "+12.5", "+37.5", "-62.5"]),  # not R@n, in which they are equal
    ]


def test_the_best_of_each_column_and_sure_differences_of_files() -> None:
    groups = dict.fromkeys(RESULTS_BY, "")
    queries = tuple(JudgedResult(str(query), b"", None, groups, 10, ()) for query in range(COUNT))
    first = np.stack([np.full(COUNT, 0.9), EVEN.astype(float), np.full(COUNT, 0.625)], axis=1)
    values = np.stack([first, np.full((COUNT, 3), 0.625)], axis=1)
    given = ResultsEvaluation(("a", "b"), ("MRR", "recall@10", "P@1"), queries, values, against="a", resamples=500)
    assert bold_figures(render_results(given)) == [
        ("a", ["90.0", "62.5"]),
        ("b", ["62.5", "62.5"]),
        ("b", ["-27.5"]),  # not recall@10, whose interval holds 0, nor P@1, in which they are equal
    ]


@pytest.mark.parametrize("rises", [[0.02, 0.04, 0.03], [-0.03, -0.01, -0.02], [math.nan, 0.02, 0.01]])
def test_the_largest_rise_of_a_tail_patch(rises: list[float]) -> None:
    def about(mean: float) -> Estimate:
        return Estimate(mean, mean - 0.01, mean + 0.01)

    rows = {
        name: TailPatchRow(about(rise), about(9 - rise), about(0.5 - rise))
        for name, rise in zip("abc", rises, strict=True)
    }
    table = TailPatchTable(rows, about(0.5), QUERIES, 10, "last", "SGD", {}, 0)
    assert bold_figures(render_tail_patch(table)) == [("b", [f"{100 * rises[1]:+.2f}"])]
