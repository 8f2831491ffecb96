"""What a view says is what the stores say: ranks, ties, signs, names, candidates, and several stores joined by id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftrace.scores import EXAMPLE_ID, ScoreStore, Texts, stable_id
from ftrace.views import (
    Listed,
    ListedQuery,
    ListedSource,
    StoreSource,
    find_query,
    make_query_line,
    make_query_view,
    query_rows,
    search_queries,
)
from ftrace.views.query_view import ListView
from helpers.made_store import EXAMPLES, QUERIES, SCORES, make_ledger, make_store


def ids_of(listed: ListView | None) -> list[int]:
    """All ids of a list, those that were folded included, in the order of their ranks in the first store."""
    assert listed is not None
    return [known for example in listed.examples for known in (example.example_id, *example.duplicate_ids)]


def test_the_list_is_that_of_top(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(-6, 7, (300, 3)).astype(np.float32)  # many are equal
    store = ScoreStore.write(tmp_path / "store", rng.permutation(300), np.arange(3), {"dot": scores})
    for query in range(3):
        for k in (1, 7, 40, 500):
            view = make_query_view([StoreSource(store)], query, k, k)
            ids, values = store.top(query, k)
            assert ids_of(view.proponents) == ids.tolist()
            assert [example.places[0].score for example in view.proponents.examples] == values.tolist()  # type: ignore[union-attr]
            ids, values = store.top(query, k, largest=False)
            assert ids_of(view.opponents) == ids[values < 0].tolist()
            largest = np.abs(store.scores(query)).max()
            for example in view.proponents.examples:
                (place,) = example.places
                assert place is not None
                assert place.share == pytest.approx(place.score / largest)
                assert place.rank == 1 + (store.scores(query) > place.score).sum()
                assert place.ties == (store.scores(query) == place.score).sum() - 1


def test_what_is_said_of_a_query(tmp_path: Path) -> None:
    store = make_store(tmp_path / "online", ledger=make_ledger(), manifest={"doubts": {"learning": ["Too short."]}})
    view = make_query_view([StoreSource(store)], 0)
    assert (view.query_id, view.name, view.prompt, view.answer) == (0, None, "The capital of Norway is", "Oslo")
    assert view.accepted == ("Christiania",)
    assert view.said is None
    assert view.history is not None
    assert view.history.losses == (6.0, 0.25)
    assert (view.history.answered.step, view.history.answered.is_right_at_end) == (20, True)
    (column,) = view.columns
    assert (column.title, column.doubts) == ("online learning", ("Too short.",))
    assert (column.candidates, column.proponents, column.opponents) == (5, 3, 2)
    never = make_query_view([StoreSource(store)], 17).history
    assert never is not None
    assert (never.answered.step, never.answered.is_right_at_end) == (-1, False)


def test_near_duplicates_are_one_and_shared_words_are_marked(tmp_path: Path) -> None:
    view = make_query_view([StoreSource(make_store(tmp_path / "online"))], 0)
    first = view.proponents.examples[0]
    assert (first.example_id, first.duplicate_ids) == (3, (5,))
    assert [first.text[begin:end] for begin, end in first.shared] == ["The", "capital", "of", "Norway", "is", "Oslo"]  # type: ignore[index]
    assert [example.example_id for example in view.proponents.examples] == [3, 8, 12, 11]
    assert [example.states_fact for example in view.proponents.examples] == [True, False, False, False]


@pytest.mark.parametrize(
    ("row", "examples", "states"),
    [
        ({"proponent_ids": [8]}, EXAMPLES, {3: False, 8: True}),
        ({"fact": "capital Norway"}, EXAMPLES, {3: True, 8: False}),
        ({}, EXAMPLES, {3: None, 8: None}),
        ({"fact": "capital Norway"}, [{"example_id": 3, "text": "a"}], {3: None, 8: None}),
    ],
)  # fmt: skip
def test_who_states_the_fact(row: dict[str, Any], examples: list[Any], states: dict[int, Any], tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", examples=examples, queries=[{"query_id": 0, "text": "?", **row}])
    view = make_query_view([StoreSource(store)], 0)
    assert {e.example_id: e.states_fact for e in view.proponents.examples if e.example_id in states} == states


@pytest.mark.parametrize(("said", "right"), [("<extra_id_0> OSLO.", True), ("Bergen", False), ("christiania", True)])
def test_what_the_texts_say_that_the_model_said(said: str, right: bool, tmp_path: Path) -> None:
    rows = [{**QUERIES[0], "said": said}, {**QUERIES[1], "said": None}]
    source = StoreSource(make_store(tmp_path / "s", queries=rows))
    view = make_query_view([source], 0)
    assert view.said is not None
    assert (view.said.text, view.said.right) == (said, right)
    assert make_query_view([source], 17).said is None


def test_stores_are_joined_by_id(tmp_path: Path) -> None:
    first = make_store(tmp_path / "online")
    order, columns = np.array([4, 2, 0, 1]), [1, 0]  # example 11 is not in it
    ids = np.array([row["example_id"] for row in EXAMPLES])
    values = np.array([[9.0, 0.0, 2.0, 9.0]]).T.repeat(2, axis=1)
    second = ScoreStore.write(tmp_path / "bm25", ids[order], np.array([17, 0])[columns][::-1], {"bm25": values})
    view = make_query_view([StoreSource(first), StoreSource(second)], 0, k=2)
    by_id = {example.example_id: example for example in view.proponents.examples}
    assert by_id.keys() == {3, 12}  # 3 and its duplicate 5 lead the first; 12 and 5, which are equal, the second
    online, bm25 = by_id[3].places
    assert online is not None
    assert bm25 is not None
    assert (online.rank, bm25.rank, bm25.ties, bm25.score) == (1, 1, 1, 9.0)  # the best of the folded ones
    assert [place and (place.rank, place.score) for place in by_id[12].places] == [(4, -0.5), (1, 9.0)]
    assert by_id[3].text == EXAMPLES[0]["text"]  # from the store that has texts
    assert view.proponents.overlaps == (1,)  # example 5
    assert view.opponents is not None
    assert [place is None for place in view.opponents.examples[0].places] == [False, True]


def test_stores_of_other_data_are_not_joined(tmp_path: Path) -> None:
    rows = [{"query_id": 0, "text": "x = 3"}, {"query_id": 17, "text": "x = 4"}]
    sources = [StoreSource(make_store(tmp_path / "a")), StoreSource(make_store(tmp_path / "b", queries=rows))]
    with pytest.raises(ValueError, match=r"of the same data, found that query 0 is .* in a and 'x = 3' in b"):
        make_query_view(sources, 0)


def test_results_without_a_prompt_are_joined(tmp_path: Path) -> None:
    store = StoreSource(make_store(tmp_path / "a"))
    listed = ListedSource("results", [ListedQuery(0, {"text": "", "answer": "Oslo"}, Listed())])
    for sources in ([store, listed], [listed, store]):
        assert make_query_view(sources, 0).query_id == 0


def test_a_store_that_lacks_the_query(tmp_path: Path) -> None:
    first = make_store(tmp_path / "online")
    second = ScoreStore.write(tmp_path / "other", np.array([3]), np.array([99]), {"dot": np.ones((1, 1))})
    sources = [StoreSource(second), StoreSource(first)]
    view = make_query_view(sources, 0)
    assert [column.knows_query for column in view.columns] == [False, True]
    assert view.proponents.overlaps == (None,)
    assert {place for example in view.proponents.examples for place in example.places[:1]} == {None}
    assert find_query(sources, "99") == 99


def test_candidates_alone_are_ranked(tmp_path: Path) -> None:
    store = ScoreStore.write(
        tmp_path / "s", np.array([3, 8, 3]), np.array([0, 1]), {"dot": np.array([1.0, np.nan, -2.0])},
        candidate_offsets=np.array([0, 2, 3]),
    )  # fmt: skip
    view = make_query_view([StoreSource(store)], 0)
    assert ids_of(view.proponents) == [3]
    assert view.columns[0].candidates == 1
    assert make_query_line([StoreSource(store)], 1, {}).strongest is None  # no score is positive


def test_how_many_more_have_the_score_of_the_last(tmp_path: Path) -> None:
    values = np.array([[3.0, 1], [1, 1], [1, 1], [1, 1], [0, 1]])
    source = StoreSource(make_store(tmp_path / "s", values))
    assert make_query_view([source], 0, k=2).proponents.same_as_last == (2,)
    assert make_query_view([source], 0, k=4).proponents.same_as_last == (0,)
    assert make_query_view([source], 17, k=1).proponents.same_as_last == (4,)


def test_names_are_names_and_numbers_stay_numbers(tmp_path: Path) -> None:
    names = {stable_id(name): name for name in ("doc a", "q one")}
    rows = [{"example_id": stable_id("doc a"), "text": "a"}, {"example_id": 7, "text": "b", "name": "seven"}]
    examples = Texts.of(rows, EXAMPLE_ID)
    store = ScoreStore.write(
        tmp_path / "s", np.array([stable_id("doc a"), 7]), np.array([stable_id("q one"), 2]),
        {"dot": np.array([[1.0, 1], [2, 2]])}, names=names, examples=examples,
    )  # fmt: skip
    source = StoreSource(store)
    query = find_query([source], "q one")
    assert query == stable_id("q one")
    view = make_query_view([source], query)
    assert view.name == "q one"
    assert [(example.name, example.example_id) for example in view.proponents.examples] == [
        (None, 7),
        ("doc a", stable_id("doc a")),
    ]
    assert make_query_view([source], find_query([source], "2")).name is None


def test_lists_of_retrieved_examples(tmp_path: Path) -> None:
    listed = Listed(["p1", 3], [2.0, 1.0], ["The capital of Norway is Oslo!", "other"], [True, False])
    opposed = Listed(["o"], [-4.0], ["no"])
    search = ListedSource("search", [ListedQuery(0, QUERIES[0], listed, opposed)])
    view = make_query_view([search, StoreSource(make_store(tmp_path / "online"))], 0)
    first = view.proponents.examples[0]
    assert (first.example_id, first.name, first.states_fact) == (stable_id("p1"), "p1", True)
    assert first.places[0] is not None
    assert (first.places[0].rank, first.places[0].share) == (1, 0.5)
    assert first.places[1] is not None  # of the duplicate, which the store knows
    assert first.duplicate_ids == (5,)
    assert view.columns[0].candidates is None
    assert view.opponents is not None
    assert [example.name for example in view.opponents.examples] == ["o", None, None]


@pytest.mark.parametrize("nothing", [0.0, np.nan, -1.0])
def test_scores_that_say_nothing(nothing: float, tmp_path: Path) -> None:
    source = StoreSource(make_store(tmp_path / "s", np.full_like(SCORES, nothing)))
    view = make_query_view([source], 0)
    assert view.columns[0].proponents == 0
    shares = {place.share for e in view.proponents.examples for place in e.places if place is not None}
    assert shares == {0.0: {None}, -1.0: {-1.0}}.get(nothing, set())


# Finding queries


def test_queries_by_id_name_and_words(tmp_path: Path) -> None:
    sources = [StoreSource(make_store(tmp_path / "s"))]
    assert find_query(sources, "17") == 17
    assert search_queries(sources, ["capital"]) == [0, 17]
    assert search_queries(sources, ["CHRISTIANIA", "capital of"]) == [0]
    assert [row["answer"] for row in query_rows(sources, [17, 0])] == ["Stockholm", "Oslo"]
    with pytest.raises(ValueError, match="query: no query '18' among 2; the nearest: 17, 0"):
        find_query(sources, "18")
    with pytest.raises(
        ValueError, match="none of 2 queries has all of these words: 'capital' is in 2, 'x1' is in none"
    ):
        search_queries(sources, ["capital", "x1"])
    with pytest.raises(ValueError, match="the texts of the queries aren't known"):
        search_queries([StoreSource(make_store(tmp_path / "t", queries=None))], ["capital"])


def test_the_nearest_names_are_said(tmp_path: Path) -> None:
    rows = [{**QUERIES[0], "name": "norway"}, {**QUERIES[1], "name": "sweden"}]
    sources = [StoreSource(make_store(tmp_path / "s", queries=rows))]
    assert find_query(sources, "sweden") == 17
    with pytest.raises(ValueError, match="no query 'swedn' among 2; the nearest: sweden"):
        find_query(sources, "swedn")
    with pytest.raises(ValueError, match="no query 'zzz' among 2; the first: norway, sweden"):
        find_query(sources, "zzz")


def test_the_kind_to_rank_by(tmp_path: Path) -> None:
    both = make_store(tmp_path / "s", {"update": SCORES, "learning": SCORES})
    assert StoreSource(both).kind == "learning"
    assert StoreSource(both, "update").kind == "update"
    assert StoreSource(make_store(tmp_path / "t", {"bm25": SCORES}), "learning").kind == "bm25"
    assert StoreSource(make_store(tmp_path / "u", {"update": SCORES, "dot": SCORES})).kind == "dot"
    with pytest.raises(ValueError, match="expected one of the kinds update, learning, found 'dot'"):
        StoreSource(both, "dot")


def test_ids_of_nineteen_digits_are_ids(tmp_path: Path) -> None:
    ids = [-(2**63), 1_000_000_000_000_000_000, 2**63 - 1]
    source = StoreSource(ScoreStore.write(tmp_path / "s", np.array([1]), np.array(ids), {"dot": np.ones((1, 3))}))
    assert [find_query([source], str(query)) for query in ids] == ids
    with pytest.raises(ValueError, match="no query '9223372036854775808'"):
        find_query([source], str(2**63))


def test_a_store_without_kinds(tmp_path: Path) -> None:
    store = ScoreStore.write(tmp_path / "s", np.array([1]), np.array([0]), {})
    with pytest.raises(ValueError, match="at least one kind, found none"):
        StoreSource(store)
