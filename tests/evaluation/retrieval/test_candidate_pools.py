"""Candidate pools against a naive construction, and on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from rank_bm25 import BM25Plus

from ftrace.data import fill_in
from ftrace.evaluation.retrieval import CandidatePools, PoolSettings, make_candidate_pools

GENERATOR = np.random.default_rng(0)
WORDS = [f"w{i}" for i in range(30)]
NAMES = [f"name-{i}" for i in range(6)]


def rows(count: int = 300) -> list[dict[str, Any]]:
    found = []
    for example in range(count):
        text = " ".join(GENERATOR.choice(WORDS, 5))
        first, second = GENERATOR.choice(NAMES, 2).tolist()
        two = example % 3 == 0  # two facts a row: either answer may be the query's
        inputs = f"<extra_id_0> {text} <extra_id_1> end" if two else f"{text} <extra_id_0>"
        targets = f"<extra_id_0> {first} <extra_id_1> {second}" if two else f"<extra_id_0> {first}"
        found.append({"example_id": example, "inputs_pretokenized": inputs, "targets_pretokenized": targets})
    return found


ROWS = rows()
QUERIES = [
    {"query_id": 10 + i, "inputs_pretokenized": f"w{i} w{i + 1} <extra_id_0> w3", "targets_pretokenized": target}
    for i, target in enumerate(["<extra_id_0> name-1", "<extra_id_0> name-4", "<extra_id_0> nobody"])
]
PROPONENTS = {10: np.array([4, 200]), 11: np.arange(60, 90), 12: np.zeros(0, np.int64)}
TABLE = datasets.Dataset.from_list(ROWS)


def with_answer(answer: str) -> set[int]:
    return {row["example_id"] for row in ROWS if answer in row["targets_pretokenized"].split(" ")}


def best_by_bm25(query: dict[str, Any], count: int) -> set[int]:
    """By rank_bm25, with the ties of its order, which are by id."""
    index = BM25Plus([fill_in(row["inputs_pretokenized"], row["targets_pretokenized"]).split(" ") for row in ROWS])
    scores = index.get_scores(fill_in(query["inputs_pretokenized"], query["targets_pretokenized"]).split(" "))
    return set(np.argsort(-scores.round(4), kind="stable")[:count].tolist())


def test_a_pool_is_the_union_of_its_sources() -> None:
    everything = PoolSettings(bm25=20, same_target=1000, random=0)
    pools = make_candidate_pools(TABLE, QUERIES, PROPONENTS, everything)
    for query in QUERIES:
        answer = query["targets_pretokenized"].removeprefix("<extra_id_0> ")
        expected = set(PROPONENTS[query["query_id"]].tolist()) | with_answer(answer) | best_by_bm25(query, 20)
        assert pools.of(query["query_id"]).tolist() == sorted(expected)
    assert pools.of(10).dtype == np.int64
    assert pools.example_ids.tolist() == sorted({one for query in (10, 11, 12) for one in pools.of(query).tolist()})
    assert pools.settings == everything


def test_what_is_drawn_is_as_many_as_said_and_the_right_ones() -> None:
    own = {10: 10, 11: 11}
    drawn = make_candidate_pools(TABLE, QUERIES[:2], {q: np.zeros(0) for q in own}, PoolSettings(0, 15, 0))
    for query, answer in ((10, "name-1"), (11, "name-4")):
        assert len(drawn.of(query)) == 15 < len(with_answer(answer))
        assert set(drawn.of(query).tolist()) < with_answer(answer)
    at_random = make_candidate_pools(TABLE, QUERIES, PROPONENTS, PoolSettings(0, 0, 50))
    assert len(at_random.of(12)) == 50
    assert at_random.of(12).max() - at_random.of(12).min() > 250
    every = make_candidate_pools(TABLE, QUERIES, PROPONENTS, PoolSettings(0, 0, 1000))
    assert every.of(11).tolist() == list(range(300))


def test_a_pool_depends_on_its_query_and_the_seed_alone() -> None:
    settings = PoolSettings(10, 10, 10)
    together = make_candidate_pools(TABLE, QUERIES, PROPONENTS, settings)
    alone = make_candidate_pools(TABLE, QUERIES[1:2], PROPONENTS, settings)
    np.testing.assert_array_equal(together.of(11), alone.of(11))
    other = make_candidate_pools(TABLE, QUERIES, PROPONENTS, PoolSettings(10, 10, 10, seed=1))
    assert not np.array_equal(other.of(11), together.of(11))
    assert np.isin(PROPONENTS[11], other.of(11)).all()


def test_on_disk(tmp_path: Path) -> None:
    pools = make_candidate_pools(TABLE, QUERIES, PROPONENTS, PoolSettings(5, 5, 5, seed=3))
    file = tmp_path / "pools" / "a.parquet"
    pools.write(file)
    assert [path.name for path in file.parent.iterdir()] == ["a.parquet"]
    again = CandidatePools.open(file)
    assert again.settings == pools.settings
    for query in (10, 11, 12):
        np.testing.assert_array_equal(again.of(query), pools.of(query))
    file.write_bytes(file.read_bytes()[:-20])
    for damaged in (file, tmp_path / "nothing.parquet"):
        with pytest.raises(ValueError, match="is missing or holds no candidate pools"):
            CandidatePools.open(damaged)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"query 12: expected at least one candidate, but its pool is empty"):
        make_candidate_pools(TABLE, QUERIES, PROPONENTS, PoolSettings(0, 100, 0))
    with pytest.raises(ValueError, match="at least one query to make a candidate pool for, found none"):
        make_candidate_pools(TABLE, [], PROPONENTS)
    with pytest.raises(ValueError, match="same_target: expected at least 0, found -1"):
        PoolSettings(same_target=-1)
    pools = make_candidate_pools(TABLE, QUERIES, PROPONENTS, PoolSettings(5, 0, 0))
    with pytest.raises(ValueError, match="no candidate pool for query 7; there are pools for 3 others"):
        pools.of(7)
