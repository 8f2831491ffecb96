"""Tables for pandas hold what the store holds."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ftrace.scores import ScoreStore, ScoreWriter, Sum, stable_id
from helpers.made_stores import HOSTILE, SCORES, made_ledger, named_store


def test_top_returns_texts_and_names_where_there_are_none(tmp_path: Path) -> None:
    store = named_store(tmp_path / "store")
    ids, scores, texts = store.top("who", 4, texts=True)
    assert texts == ["Oslo, Norway", HOSTILE, "a lie", "wiki/4"]
    assert [ids.tolist(), scores.tolist()] == [part.tolist() for part in store.top("who", 4)]
    assert store.top("who", 1, largest=False, texts=True)[2] == ["wiki/4"]
    assert named_store(tmp_path / "bare", texts=False).top("who", 1, texts=True)[2] == ["wiki/2"]
    assert store.query_texts_of([stable_id("where"), 5]) == ["where is Oslo?", "5"]
    plain = ScoreStore.write(tmp_path / "plain", np.arange(4), np.arange(2), {"dot": SCORES})
    assert plain.top(0, 1, texts=True)[2] == ["1"]
    assert plain.query_texts_of([1]) == ["1"]


def test_the_strongest_are_tabled_with_all_that_is_known_of_them(tmp_path: Path) -> None:
    table = named_store(tmp_path / "store").to_pandas("who", "learning", 3)
    assert table.columns.tolist() == [
        "query_id", "query_name", "rank", "example_id", "example_name", "dot", "learning", "share", "states_fact",
        "text", "answer",
    ]  # fmt: skip
    assert table["query_name"].tolist() == ["who"] * 3
    assert table["rank"].tolist() == [1, 2, 3]
    assert table["example_id"].tolist() == [stable_id(name) for name in ("wiki/4", "wiki/3", "wiki/1")]
    assert table["example_name"].tolist() == ["wiki/4", "wiki/3", "wiki/1"]
    assert table["dot"].tolist() == [-8.0, -1.0, 1.0]
    assert table["learning"].tolist() == [8.0, 1.0, -1.0]
    assert table["share"].tolist() == [1.0, 0.125, -0.125]
    assert table["states_fact"].tolist() == [pd.NA, False, True]
    assert table["text"].tolist()[1:] == ["a lie", HOSTILE]
    assert pd.isna(table["text"][0])
    assert table["answer"].tolist()[1:] == ["WIKI/3", "WIKI/1"]


def test_a_fact_is_stated_by_the_query_s_proponents_if_they_are_known(tmp_path: Path) -> None:
    table = named_store(tmp_path / "store").to_pandas("where").set_index("example_name")
    assert table["states_fact"].to_dict() == {"wiki/1": False, "wiki/2": False, "wiki/3": True}  # wiki/4 has no score
    assert table["share"]["wiki/3"] == 1.0


def test_several_queries_and_all_of_them(tmp_path: Path) -> None:
    store = named_store(tmp_path / "store")
    both = store.to_pandas(["where", stable_id("who")], k=2, largest=False)
    assert both["query_name"].tolist() == ["where", "where", "who", "who"]
    assert both["example_name"].tolist() == ["wiki/1", "wiki/2", "wiki/4", "wiki/3"]
    everywhere = store.to_pandas(k=1)
    assert everywhere[["query_name", "example_name", "dot"]].to_numpy().tolist() == [
        ["who", "wiki/2", 2.0], ["where", "wiki/3", 4.0],
    ]  # fmt: skip
    assert store.to_pandas(np.array([stable_id("who")]), k=1)["dot"].tolist() == [2.0]
    for query in (stable_id("who"), np.array(stable_id("who")), pd.Series(["who"])):
        assert store.to_pandas(query, k=1)["dot"].tolist() == [2.0]
    assert len(store.to_pandas([])) == 0


def test_ids_without_names_and_texts_are_tabled_alone(tmp_path: Path) -> None:
    store = ScoreStore.write(tmp_path / "store", np.arange(4), np.arange(2), {"dot": SCORES})
    assert store.to_pandas(1, k=1).to_dict("list") == {
        "query_id": [1], "rank": [1], "example_id": [2], "dot": [4.0], "share": [1.0],
    }  # fmt: skip


def test_a_kind_may_be_named_like_a_column(tmp_path: Path) -> None:
    table = named_store(tmp_path / "store", text=SCORES, rank=-SCORES, dot=SCORES).to_pandas("who", k=1)
    assert (table["score_text"][0], table["text"][0]) == (2.0, "Oslo, Norway")
    assert (table["score_rank"][0], table["rank"][0]) == (-2.0, 1)


def test_all_scores_of_a_kind_are_tabled_by_name_or_id(tmp_path: Path) -> None:
    table = named_store(tmp_path / "store").to_pandas(kind="learning")
    assert (table.index.name, table.columns.name) == ("example_name", "query_name")
    np.testing.assert_array_equal(table.sort_index()[["who", "where"]].to_numpy(), -SCORES)
    plain = ScoreStore.write(tmp_path / "plain", np.arange(4), np.array([7, 3]), {"dot": SCORES}).to_pandas()
    assert (plain.index.name, plain.columns.name) == ("example_id", "query_id")
    assert plain.loc[2, 3] == 4.0


def test_what_is_no_candidate_is_nan_or_left_out(tmp_path: Path) -> None:
    pairs, offsets = np.array([3, 9, 3, 1]), np.array([0, 2, 4])
    scores = {"dot": np.array([1.0, -2.0, 3.0, 4.0]), "cosine": np.array([4.0, 3.0, 2.0, 1.0])}
    store = ScoreStore.write(tmp_path / "store", pairs, np.array([11, 10]), scores, candidate_offsets=offsets)
    np.testing.assert_array_equal(store.to_pandas().to_numpy(), [[np.nan, 4], [1, 3], [-2, np.nan]])
    ranked = store.to_pandas(k=5)
    assert ranked[["query_id", "example_id", "cosine"]].to_numpy().tolist() == [
        [11, 3, 4],
        [11, 9, 3],
        [10, 1, 1],
        [10, 3, 2],
    ]


def test_shares_of_scores_that_are_all_zero_are_unknown(tmp_path: Path) -> None:
    store = ScoreStore.write(tmp_path / "store", np.arange(4), np.arange(2), {"dot": np.zeros((4, 2))})
    assert store.to_pandas(0)["share"].isna().all()


def test_a_gigantic_table_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with ScoreWriter(tmp_path / "large", np.arange(10**6), np.arange(60), ["dot"]) as writer:
        store = writer.finish()
    with pytest.raises(
        ValueError, match=r"at most 200 MB, found 1,000,000 examples x 60 queries, 240 MB. Take to_pandas\("
    ):
        store.to_pandas()
    with pytest.raises(ValueError, match="at most 1,000,000 rows, found 20,000 for each of 60 queries"):
        store.to_pandas(k=20_000)
    assert len(store.to_pandas(list(range(3)), k=2)) == 6


def test_a_doubt_is_told_once_here_as_in_top(tmp_path: Path) -> None:
    doubt = {"doubts": {"dot": ["`dot` is in doubt: ..."]}}
    store = ScoreStore.write(tmp_path / "store", np.arange(4), np.arange(2), {"dot": SCORES}, doubt)
    with pytest.warns(UserWarning, match="in doubt") as warned:
        store.to_pandas(0)
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.top(0)


def test_a_ledger_is_tabled_by_interval_and_query(tmp_path: Path) -> None:
    named = named_store(tmp_path / "store")
    ledger = made_ledger(named.query_ids.tolist())
    names = {stable_id(name): name for name in ("who", "where")}
    ids = named.example_ids, named.query_ids
    store = ScoreStore.write(tmp_path / "with", *ids, {Sum("dot"): SCORES}, ledger=ledger, names=names)
    assert store.ledger is not None
    table = store.ledger.to_pandas()
    assert table.columns.tolist()[:6] == ["step", "next_step", "query_id", "query_name", "actual", "loss"]
    assert table["query_name"].tolist() == ["who", "where", "who", "where"]
    assert table["step"].tolist() == [0, 0, 5, 5]
    for name in ("actual", "examples", "right", "next_right"):
        np.testing.assert_array_equal(table[name].to_numpy().reshape(2, 2), store.ledger[name])
    assert "query_name" not in made_ledger([3, 4]).to_pandas()
    assert len(type(store.ledger).empty().to_pandas()) == 0
