"""An example's page adds up the scores that the example has for all queries of the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ftrace.report.explorer.content import examples as pages_of_examples
from ftrace.report.explorer.content.content import Content, ContentSettings
from ftrace.report.explorer.content.examples import totals_of
from ftrace.report.explorer.content.ranked_queries import RankedQueries
from ftrace.report.explorer.content.score_rows import score_rows
from ftrace.scores import ScoreStore
from ftrace.views import StoreSource


def drawn_scores(examples: int, queries: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    scores = generator.integers(-4, 5, (examples, queries)) / 2
    scores[generator.random(scores.shape) < 0.1] = np.nan
    scores[0] = np.nan
    return scores


def test_totals_of_each_example() -> None:
    scores = drawn_scores(30, 25)
    found = totals_of(scores)
    assert found[0] is None
    for row, totals in zip(scores[1:], found[1:], strict=True):
        assert totals is not None
        assert (totals["helped"], totals["hurt"]) == ((row > 0).sum(), (row < 0).sum())
        assert (totals["sum_helped"], totals["sum_hurt"]) == (row[row > 0].sum(), row[row < 0].sum())
        for listed, sign in ((totals["most_helped"], 1), (totals["most_hurt"], -1)):
            order = [query for query in np.argsort(-sign * row, kind="stable").tolist() if sign * row[query] > 0][:10]
            assert listed == [(query, row[query]) for query in order]


def test_few_queries_and_none() -> None:
    (one,) = totals_of(np.array([[-1.0]]))
    assert one is not None
    assert (one["most_helped"], one["most_hurt"]) == ([], [(0, -1.0)])
    assert totals_of(np.zeros((2, 0))) == [None, None]
    assert totals_of(np.zeros((0, 3))) == []


def test_rows_are_those_of_the_store_in_any_order(tmp_path: Path) -> None:
    ids, queries = np.arange(40) * 3, np.array([8, 2, 5])
    scores = drawn_scores(40, 3)
    source = StoreSource(ScoreStore.write(tmp_path / "s", ids[::-1], queries, {"dot": scores[::-1]}))
    wanted = np.array([9, 7, 0, 117])
    rows = score_rows(source, [5, 9, 8], wanted)
    expected = np.full((4, 3), np.nan)
    expected[[0, 2, 3], 0], expected[[0, 2, 3], 2] = scores[[3, 0, 39], 2], scores[[3, 0, 39], 0]
    np.testing.assert_array_equal(rows, expected)


def test_candidates_are_read_as_all_others(tmp_path: Path) -> None:
    scores = drawn_scores(20, 4, seed=1)
    scores[0] = 1
    whole = StoreSource(ScoreStore.write(tmp_path / "whole", np.arange(20), np.arange(4), {"dot": scores}))
    ranked = [np.flatnonzero(np.isfinite(column)) for column in scores.T]
    pairs = StoreSource(
        ScoreStore.write(
            tmp_path / "pairs", np.concatenate(ranked), np.arange(4),
            {"dot": np.concatenate([column[rows] for column, rows in zip(scores.T, ranked, strict=True)])},
            candidate_offsets=np.cumsum([0, *map(len, ranked)]),
        )
    )  # fmt: skip
    ids = np.arange(20)
    np.testing.assert_array_equal(score_rows(whole, range(4), ids), score_rows(pairs, range(4), ids))
    assert totals_of(score_rows(whole, range(4), ids)) == totals_of(score_rows(pairs, range(4), ids))


def test_pages_in_chunks_of_any_size_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = StoreSource(ScoreStore.write(tmp_path / "s", np.arange(50), np.arange(6), {"dot": drawn_scores(50, 6)}))

    def pages() -> tuple[list, list[str]]:
        content = Content(RankedQueries([source], range(6), 20, 5), "made", ContentSettings())
        chunks = dict(content.chunks())
        of_examples = [chunk["examples"] for name, chunk in chunks.items() if name.startswith("example")]
        assert [of_chunk[0]["id"] for of_chunk in of_examples] == chunks["head"]["example_chunks"]
        return [page for of_chunk in of_examples for page in of_chunk], chunks["head"]["example_chunks"]

    whole, first_ids = pages()
    assert first_ids == ["1"]
    monkeypatch.setattr(pages_of_examples, "EXAMPLES_OF_A_CHUNK", 7)
    monkeypatch.setattr(pages_of_examples, "_AT_ONCE", 14)
    parted, first_ids = pages()
    assert parted == whole
    assert len(first_ids) == -(-len(whole) // 7)
