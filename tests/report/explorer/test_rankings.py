"""Ranks, ties and lists of a report are those of the scores, in whatever order and of whichever examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ftrace.report.explorer.content.listings import disagreement, list_examples, lists_of, places_in, precision_by_ids
from ftrace.report.explorer.content.rankings import rank_query
from ftrace.scores import ScoreStore, ScoreWriter
from ftrace.views import Listed, ListedQuery, ListedSource, StoreSource


def drawn_store(folder: Path, seed: int, ids: np.ndarray, queries: int = 3, *, dtype: str = "float32") -> ScoreStore:
    """Scores with many ties and zeros, some of which are no finite numbers."""
    generator = np.random.default_rng(seed)
    scores = generator.integers(-6, 7, (len(ids), queries)).astype(dtype)
    scores[generator.random(scores.shape) < 0.05] = np.nan
    scores[generator.random(scores.shape) < 0.02] = np.inf
    return ScoreStore.write(folder, ids, np.arange(queries), {"dot": scores})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 7, 40, 1000])
def test_lists_are_those_of_the_store(tmp_path: Path, seed: int, k: int) -> None:
    ids = np.random.default_rng(seed).permutation(np.arange(100, 160) * 7)
    store = drawn_store(tmp_path / "s", seed, ids)
    for query in store.query_ids.tolist():
        ranking = rank_query(StoreSource(store), query)
        assert ranking is not None
        top, _ = store.top(query, k)
        assert ranking.proponents(k).tolist() == top.tolist()
        bottom, scores = store.top(query, k, largest=False)
        assert ranking.opponents(k).tolist() == bottom[scores < 0].tolist()


def test_zero_opponents_are_none(tmp_path: Path) -> None:
    listing = list_examples([StoreSource(drawn_store(tmp_path / "s", 0, np.arange(20)))], 0, 5, 0)
    assert listing.methods[0] is not None
    assert listing.methods[0].opponents is None
    assert len(listing.ids) == 5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_places_count_what_is_above_and_below(tmp_path: Path, dtype: str) -> None:
    stores = [
        drawn_store(tmp_path / "a", 1, np.arange(50), dtype=dtype),
        drawn_store(tmp_path / "b", 2, np.arange(80, 20, -1), dtype=dtype),  # other examples, the other way round
    ]
    listing = list_examples([StoreSource(store) for store in stores], 1, 9, 6)
    assert len(set(listing.ids.tolist())) == len(listing.ids)
    for store, method in zip(stores, listing.methods, strict=True):
        assert method is not None
        scores = store.scores(1)
        finite = scores[np.isfinite(scores)]
        known = dict(zip(store.example_ids.tolist(), scores, strict=True))
        for example, place in zip(listing.ids.tolist(), places_in(method, len(listing.ids)), strict=True):
            score = known.get(example, np.nan)
            if not np.isfinite(score):
                assert place is None
                continue
            assert place is not None
            assert place["rank"] == 1 + (finite > score).sum()
            assert place["rank_from_below"] == 1 + (finite < score).sum()
            assert place["ties"] == (finite == score).sum() - 1
            assert np.dtype(dtype).type(place["score"]) == score
            assert place["share"] == pytest.approx(score / np.abs(finite).max(), rel=1e-3)
        lists = lists_of(method)
        assert (lists["candidates"], lists["positive"]) == (len(finite), (finite > 0).sum())
        assert lists["negative"] == (finite < 0).sum()
        last = known[int(listing.ids[lists["proponents"][-1]])]
        assert lists["more_proponents_like_last"] == (finite >= last).sum() - 9
        assert lists["opponents"] is not None
        last = known[int(listing.ids[lists["opponents"][-1]])]
        assert lists["more_opponents_like_last"] == (finite <= last).sum() - 6


def test_only_candidates_are_ranked(tmp_path: Path) -> None:
    pairs = np.array([4, 9, 2, 9])
    store = ScoreStore.write(
        tmp_path / "s", pairs, np.array([5, 6]), {"dot": np.array([1.0, -1.0, 3.0, 0.0])},
        candidate_offsets=np.array([0, 3, 4]),
    )  # fmt: skip
    first, second = (list_examples([StoreSource(store)], query, 5, 5) for query in (5, 6))
    assert first.ids.tolist() == store.top(5, 5)[0].tolist() == [2, 4, 9]
    assert first.methods[0] is not None
    assert lists_of(first.methods[0])["candidates"] == 3
    assert second.ids.tolist() == [9]
    assert places_in(second.methods[0], 1)[0] == {
        "rank": 1, "rank_from_below": 1, "ties": 0, "score": 0.0, "share": None
    }  # fmt: skip


def test_all_zero_and_all_equal_scores(tmp_path: Path) -> None:
    scores = np.stack([np.zeros(30), np.full(30, 2.0)], 1)
    source = StoreSource(ScoreStore.write(tmp_path / "s", np.arange(30), np.arange(2), {"dot": scores}))
    for query, share in ((0, None), (1, 1.0)):
        listing = list_examples([source], query, 10, 10)
        assert listing.ids.tolist() == list(range(10))
        assert listing.methods[0] is not None
        assert lists_of(listing.methods[0])["more_proponents_like_last"] == 20
        assert lists_of(listing.methods[0])["opponents"] == []
        places = places_in(listing.methods[0], 10)
        assert {(place["rank"], place["ties"], place["share"]) for place in places if place} == {(1, 29, share)}


def test_the_best_of_all_methods_come_first_each_once(tmp_path: Path) -> None:
    ids = np.arange(6)
    stores = [
        ScoreStore.write(tmp_path / name, ids, np.array([0]), {"dot": np.array(scores, float)[:, None]})
        for name, scores in (("a", [5, 4, 3, 2, 1, -1]), ("b", [0, 5, -9, 0, 0, 9]))
    ]
    listing = list_examples([StoreSource(store) for store in stores], 0, 2, 1)
    assert listing.ids.tolist() == [0, 5, 1, 2]  # both first, both second, and opponents
    assert disagreement(listing, 2) == 0.5


def test_an_example_in_lists_stands_where_its_list_has_it() -> None:
    texts = ["a", "b", "c"]
    query = ListedQuery("q", {}, Listed([7, 8, 9], [3.0, 2.0, 2.0], texts), Listed([5, 9], [-4.0, 2.0], texts[:2]))
    source = ListedSource("found", [query])
    listing = list_examples([source], source.query_ids[0], 2, 20)
    assert listing.ids.tolist() == [7, 8, 5]  # 9 raises no loss
    method = listing.methods[0]
    assert method is not None
    assert [place and (place["rank"], place["rank_from_below"], place["ties"]) for place in places_in(method, 3)] == [
        (1, None, 0), (2, None, 1), (None, 1, 0),
    ]  # fmt: skip
    assert lists_of(method)["more_proponents_like_last"] == 1
    assert lists_of(method)["candidates"] is None


def test_precision_at_ten_is_in_expectation_over_ties(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    scores = generator.integers(0, 4, 40).astype(float)
    with ScoreWriter(tmp_path / "s", np.arange(40), np.array([0]), ["dot"]) as writer:
        writer.put("dot", scores, columns=0)
        source = StoreSource(writer.finish())
    relevant = np.array([1, 3, 17, 30, 39])
    ranking = rank_query(source, 0)
    assert ranking is not None
    orders = [np.lexsort((generator.random(40), -scores))[:10] for _ in range(4000)]
    expected = np.mean([np.isin(order, relevant).sum() / 10 for order in orders])
    assert precision_by_ids(ranking, relevant) == (pytest.approx(expected, abs=0.01), 0.5)
