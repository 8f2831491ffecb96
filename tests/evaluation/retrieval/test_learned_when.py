"""Scores by the step at which their queries were learned."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ftrace.evaluation import EvaluatedQueries
from ftrace.evaluation.retrieval import learned_when, render_learned_when, write_learned_when
from ftrace.scores import AnswerRecord, ScoreStore, Sum

IDS, NUMBERS = np.arange(20), np.array([3, 4, 5])
QUERIES = EvaluatedQueries.of({3: [0, 1], 4: [2, 3], 5: [4, 5]})


def stores(tmp_path: Path, right: Any = ((1, 0, 0), (0, 0, 0), (1, 1, 0)), start: int = 0) -> dict[str, ScoreStore]:
    """Online scores that find every proponent; a snapshot's that are their opposite for the query learned first."""
    answers = AnswerRecord([0, 5, 10, 15], NUMBERS, [[start] * 3, *map(list, right)])
    online = np.zeros((20, 3))
    for column, proponents in enumerate(QUERIES.proponents):
        online[proponents, column] = 2
    online += np.linspace(0, 1, 20)[:, None]
    parts = {Sum("cosine"): online, Sum("cosine", "learned", "before"): 0.75 * online,
             Sum("cosine", "learned", "after"): 0.25 * online}  # fmt: skip
    first = ScoreStore.write(tmp_path / "online", IDS, NUMBERS, parts, answers=answers)
    of_snapshot = {"cosine": online * [-1, 1, 1], "dot": online}
    return {"online": first, "last": ScoreStore.write(tmp_path / "last", IDS, NUMBERS, of_snapshot)}


def test_queries_are_put_into_bins_by_the_step_they_were_learned_at(tmp_path: Path) -> None:
    bins = learned_when(stores(tmp_path), QUERIES, bins=2)
    assert [(one.first, one.last, one.num_queries) for one in bins] == [(5, 5, 1), (15, 15, 1), (-1, -1, 1)]
    early, late, _ = (one.methods for one in bins)
    assert list(early) == ["online cosine", "last cosine", "last dot"]
    assert [one.precision.mean for one in early.values()] == [0.2, 0.0, 0.2]
    assert [one.precision.mean for one in late.values()] == [0.2, 0.2, 0.2]
    assert [one.rank_correlation for one in early.values()] == pytest.approx([1, -1, 1])
    assert late["last cosine"].rank_correlation == pytest.approx(1)
    assert early["online cosine"].before == pytest.approx(0.75)
    assert early["last cosine"].before is None


def test_what_was_known_before_or_never_right_is_not_learned_at_a_step(tmp_path: Path) -> None:
    """Query 3 is right before training and forgotten, 4 is learned and forgotten, and of 5 nothing is known."""
    right = [[1, 0, -1], [1, 1, -1], [0, 0, -1], [0, 0, -1]]
    answers = AnswerRecord([0, 5, 10, 15], NUMBERS, right)
    store = ScoreStore.write(tmp_path / "s", IDS, NUMBERS, {"dot": np.zeros((20, 3))}, answers=answers)
    bins = learned_when({"online": store}, QUERIES)
    assert [(one.state, one.first, one.num_queries, one.forgotten) for one in bins] == [
        ("known", 0, 1, 1), ("learned", 5, 1, 1),
    ]  # fmt: skip
    console = Console(record=True, width=100)
    console.print(render_learned_when(bins))
    printed = console.export_text()
    assert "before training" in printed
    assert "1 query, 1 forgotten" in printed


def test_each_bin_knows_the_most_that_is_possible(tmp_path: Path) -> None:
    """Two ground-truth proponents among ten are a fifth; the bin of a query with twelve allows all ten."""
    many = EvaluatedQueries.of({3: [0, 1], 4: [2, 3], 5: list(range(4, 16))})
    bins = learned_when(stores(tmp_path), many, bins=2)
    assert [one.ceiling for one in bins] == pytest.approx([0.2, 0.2, 1.0])
    for one in bins:
        assert all(method.precision.mean <= one.ceiling for method in one.methods.values())
    console = Console(record=True, width=100)
    console.print(render_learned_when(bins))
    assert re.search(r"ceiling +20\.0 +20\.0 +100", console.export_text())
    write_learned_when(bins, tmp_path / "bins.json")
    assert [one["ceiling"] for one in json.loads((tmp_path / "bins.json").read_text())] == pytest.approx([0.2, 0.2, 1])


def test_bins_of_several_facts_have_intervals(tmp_path: Path) -> None:
    (one,) = learned_when(stores(tmp_path, [[1, 1, 1], [1, 1, 1], [1, 1, 1]]), QUERIES, bins=1)
    assert one.num_queries == 3
    precision = one.methods["last cosine"].precision
    assert precision.mean == pytest.approx(0.4 / 3)
    assert precision.low < precision.mean < precision.high


def test_printed_and_written(tmp_path: Path) -> None:
    bins = learned_when(stores(tmp_path), QUERIES, bins=2, kinds=["cosine"])
    console = Console(record=True, width=100)
    console.print(render_learned_when(bins))
    text = console.export_text()
    assert "rank correlation with online cosine" in text
    assert "gained before it was right" in text
    assert "never" in text
    write_learned_when(bins, tmp_path / "bins.json")
    found = json.loads((tmp_path / "bins.json").read_text())
    assert list(found[0]["methods"]) == ["online cosine", "last cosine"]
    assert found[0]["methods"]["online cosine"]["precision"] == {
        "mean": pytest.approx(0.2), "low": None, "high": None, "spread": None,
    }  # fmt: skip


def test_constant_scores_have_no_rank_correlation(tmp_path: Path) -> None:
    given = stores(tmp_path, [[1, 1, 1], [1, 1, 1], [1, 1, 1]])
    scores = given["last"].matrix("dot") * [-1, 0, 0]
    given["last"] = ScoreStore.write(tmp_path / "constant", IDS, NUMBERS, {"dot": scores})
    (all_queries,) = learned_when(given, QUERIES, bins=1)
    method = all_queries.methods["last dot"]
    assert (method.rank_correlation, method.undefined) == (pytest.approx(-1), 2)
    console = Console(record=True, width=100)
    console.print(render_learned_when([all_queries]))
    assert re.search(r"queries left out: constant scores +2\b", console.export_text())
    write_learned_when([all_queries], tmp_path / "bins.json")
    written = json.loads((tmp_path / "bins.json").read_text())[0]["methods"]
    assert [of_method.get("undefined") for of_method in written.values()] == [None, 2]


def test_without_knowing_when_it_says_what_to_do(tmp_path: Path) -> None:
    given = stores(tmp_path)
    with pytest.raises(
        ValueError, match=r"expected a store that records when queries were right. Train with OnlineTracIn"
    ):
        learned_when({"last": given["last"]}, QUERIES)
    unknown = stores(tmp_path / "unknown", [[-1] * 3] * 3, start=-1)
    with pytest.raises(ValueError, match="expected a store that records"):
        learned_when(unknown, QUERIES)
    with pytest.raises(ValueError, match="bins: expected at least 1, found 0"):
        learned_when(given, QUERIES, bins=0)
    with pytest.raises(ValueError, match=r"kinds: expected some of \['cosine', 'dot'\], found \['update'\]"):
        learned_when(given, QUERIES, kinds=["update"])
    other = ScoreStore.write(tmp_path / "other", IDS[1:], NUMBERS, {"cosine": np.zeros((19, 3))})
    with pytest.raises(ValueError, match="expected stores of the same examples"):
        learned_when({"online": given["online"], "other": other}, QUERIES)
