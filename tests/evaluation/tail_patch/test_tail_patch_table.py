"""Averages of tail-patch, by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ftrace.evaluation import EvaluatedQueries
from ftrace.evaluation.tail_patch import (
    PatchedPairs,
    TailPatchTable,
    notes_on_rises,
    random_examples,
    render_tail_patch,
    some_proponents,
    summarize_rises,
    write_tail_patch,
)

RISES = {(0, 1): 0.1, (0, 2): -0.2, (1, 1): 0.3, (1, 3): 0.0, (2, 2): 0.5}
KIND = {(0, 1): 0, (0, 2): 1, (1, 1): 0, (1, 3): 4, (2, 2): 0}
PICKS = {"a": {0: [1, 2], 1: [1, 3], 2: [2]}, "random": {0: [2], 1: [1], 2: []}}


class Kinds:
    """Kinds made by hand."""

    def of(self, query: int, examples: np.ndarray) -> np.ndarray:
        return np.array([KIND[query, example] for example in examples.tolist()], np.int64)


@pytest.fixture
def queries() -> EvaluatedQueries:
    facts: dict[int, str | None] = {0: "f", 1: "g", 2: "h"}
    return EvaluatedQueries.of({0: [1], 1: [1, 3], 2: [2, 4, 5]}, facts)


def patched() -> PatchedPairs:
    pairs = np.array(list(RISES))
    before = np.array([0.2, 0.2, 0.4, 0.4, 0.0])
    return PatchedPairs(pairs[:, 0], pairs[:, 1], before, before + np.array(list(RISES.values())))


def test_means_by_hand(queries: EvaluatedQueries) -> None:
    picks = {name: {query: np.array(ids, np.int64) for query, ids in own.items()} for name, own in PICKS.items()}
    rows, probability = summarize_rises(patched(), picks, queries, "random", Kinds())  # type: ignore[arg-type]
    assert probability.mean == pytest.approx(0.2)
    one, random = rows["a"], rows["random"]
    assert one.rise.mean == pytest.approx((-0.05 + 0.15 + 0.5) / 3)
    assert one.raised.mean == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert random.rise.mean == pytest.approx((-0.2 + 0.3 + 0) / 3)  # a query without examples is not raised
    assert one.beyond_random is not None
    assert one.beyond_random.mean == pytest.approx(one.rise.mean - random.rise.mean)
    assert one.beyond_random.low <= one.beyond_random.mean <= one.beyond_random.high
    assert random.beyond_random is None

    states, subject, of, relation, other = one.kinds
    assert [kind.count for kind in one.kinds] == [3, 1, 0, 0, 1]
    assert states.share.mean == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert states.rise.mean == pytest.approx((0.1 / 2 + 0.3 / 2 + 0.5) / 2)
    assert states.rise.low <= states.rise.mean <= states.rise.high
    assert subject.rise.mean == pytest.approx(-0.2)
    assert math.isnan(subject.rise.low)  # of one query: resampling would call it certain
    assert other.rise.mean == pytest.approx(0.0)
    assert math.isnan(of.rise.mean)
    assert math.isnan(relation.rise.mean)
    of_kinds = sum(kind.share.mean * kind.rise.mean for kind in one.kinds if kind.count)
    assert of_kinds == pytest.approx(one.rise.mean)


def test_probabilities_that_are_not_numbers_are_left_out_and_told(queries: EvaluatedQueries) -> None:
    picks = {name: {query: np.array(ids, np.int64) for query, ids in own.items()} for name, own in PICKS.items()}
    made = patched()
    after = made.after.copy()
    after[1] = np.nan  # query 0, example 2: all that there is of the random ones
    after[3] = np.nan  # query 1, example 3
    made = replace(made, after=after)
    rows, probability = summarize_rises(made, picks, queries, "random", Kinds())  # type: ignore[arg-type]
    assert probability.mean == pytest.approx((0.4 + 0.0) / 2)  # query 0 is left out of all rows
    assert rows["a"].rise.mean == pytest.approx((0.3 + 0.5) / 2)
    assert rows["a"].raised.mean == 1
    assert rows["random"].rise.mean == pytest.approx((0.3 + 0) / 2)
    assert rows["a"].beyond_random is not None
    assert rows["a"].beyond_random.mean == pytest.approx(rows["a"].rise.mean - rows["random"].rise.mean)
    assert [kind.count for kind in rows["a"].kinds] == [2, 0, 0, 0, 0]
    note = "left out: 2 of 5 pairs whose probability is NaN before or after the step, and 1 of 3 queries with them"
    assert notes_on_rises(made, picks, queries) == (note,)
    assert notes_on_rises(patched(), picks, queries) == ()


def test_where_no_query_is_left_the_table_says_nan(queries: EvaluatedQueries, tmp_path: Path) -> None:
    picks = {name: {query: np.array(ids, np.int64) for query, ids in own.items()} for name, own in PICKS.items()}
    made = replace(patched(), before=np.full(5, np.nan))
    rows, probability = summarize_rises(made, picks, queries, "random")
    assert math.isnan(probability.mean)
    notes = notes_on_rises(made, picks, queries)
    assert notes[-1] == "NaN: no query is left"
    table = TailPatchTable(rows, probability, queries, 2, "step-00000004", "SGD", {}, 0, notes)
    files = write_tail_patch(table, made, tmp_path)
    assert "| a | NaN | NaN |" in files[0].read_text()
    assert json.loads(files[2].read_text())["rows"]["a"]["rise"]["mean"] is None
    render_tail_patch(table)


def test_without_kinds(queries: EvaluatedQueries) -> None:
    picks = {name: {query: np.array(ids, np.int64) for query, ids in own.items()} for name, own in PICKS.items()}
    rows, _ = summarize_rises(patched(), picks, queries, "random")
    assert rows["a"].kinds == ()


def test_random_examples_are_a_querys_own() -> None:
    some, others = random_examples([3, 5], 50, 10, 0), random_examples([5, 9], 50, 10, 0)
    np.testing.assert_array_equal(some[5], others[5])
    assert len(set(some[3].tolist())) == 10
    assert some[3].tolist() != some[5].tolist()
    assert random_examples([3], 50, 10, 1)[3].tolist() != some[3].tolist()
    assert sorted(random_examples([0], 4, 10, 0)[0].tolist()) == [0, 1, 2, 3]


def test_proponents_are_drawn_or_all_taken(queries: EvaluatedQueries) -> None:
    found = some_proponents(queries, 2, 0)
    assert found[0].tolist() == [1]
    assert sorted(found[1].tolist()) == [1, 3]
    assert len(found[2]) == 2
    assert set(found[2].tolist()) < {2, 4, 5}
