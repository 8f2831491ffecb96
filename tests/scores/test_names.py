"""Names come back as names, and queries are asked for by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftrace.scores import ScoreStore, Texts, stable_id
from ftrace.scores.names import Names
from helpers.made_stores import EXAMPLES, SCORES, named_store


@pytest.mark.parametrize("names", [True, False])
def test_ids_come_back_as_the_names_that_they_were_made_from(tmp_path: Path, names: bool) -> None:
    """Also where only the texts tell them."""
    store = named_store(tmp_path / "store", names=names)
    ids, _ = store.top("who", 2)
    assert store.example_names_of(ids) == ["wiki/2", "wiki/1"]
    assert store.query_names_of(store.query_ids) == ["who", "where"]
    assert sorted(store.names_of_examples.labels()) == (
        list(EXAMPLES) if names else [str(stable_id("wiki/4")), *EXAMPLES[:3]]
    )


def test_an_id_without_a_name_is_called_by_itself(tmp_path: Path) -> None:
    store = named_store(tmp_path / "store")
    assert store.example_names_of([7, stable_id("wiki/1"), -7]) == ["7", "wiki/1", "-7"]
    assert store.example_names_of([]) == []
    plain = ScoreStore.write(tmp_path / "plain", np.arange(4), np.arange(2), {"dot": SCORES})
    assert plain.example_names_of(np.array([3, 0])) == ["3", "0"]
    assert plain.names_of_examples.labels() is plain.example_ids


def test_names_of_many_ids_are_those_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = named_store(tmp_path / "store", names=False).names_of_examples
    ids = [stable_id(name) for name in (*EXAMPLES, "elsewhere", "wiki/1")]
    few = names.of(ids)
    assert few == ["wiki/1", "wiki/2", "wiki/3", str(ids[3]), str(ids[4]), "wiki/1"]
    monkeypatch.setattr("ftrace.scores.names._FEW", 2)
    assert names.of(ids) == few


def test_numbers_beside_which_names_are_notes_stay_the_labels() -> None:
    texts = Texts.of([{"query_id": 3, "text": "a", "name": "first"}, {"query_id": 9, "text": "b"}], "query_id")
    names = Names(np.array([9, 3]), None, texts)
    assert names.labels().tolist() == [9, 3]
    assert names.of([3, 9]) == ["first", "9"]
    assert names.place("first") == 1


@pytest.mark.parametrize(
    "query", ["where", stable_id("where"), np.int64(stable_id("where")), np.array(stable_id("where"))]
)
def test_a_query_is_asked_for_by_name_or_by_an_integer_of_any_library(tmp_path: Path, query: Any) -> None:
    store = named_store(tmp_path / "store")
    assert store.top(query, np.int64(1))[1].tolist() == [4.0]
    assert store.scores(query)[np.argsort(store.names_of_examples.labels())].tolist()[:3] == [-3.0, 0.0, 4.0]


@pytest.mark.parametrize("query", [True, np.True_, 3.0, None, [3]])
def test_what_is_no_id_and_no_name_is_refused(tmp_path: Path, query: Any) -> None:
    with pytest.raises(ValueError, match="query_id: expected a whole number or a name, found"):
        named_store(tmp_path / "store").scores(query)


@pytest.mark.parametrize("k", [0, np.int64(-1), True, 1.5])
def test_a_number_of_examples_is_a_whole_one(tmp_path: Path, k: Any) -> None:
    with pytest.raises(ValueError, match="k: expected a whole number from 1 on, found"):
        named_store(tmp_path / "store").top("who", k)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("were", r"no query 'were'; the store has 2 queries, the nearest \['where'\]"),
        ("xyz", r"no query 'xyz'; the store has 2 queries, the first \['who', 'where'\]"),
        (17, r"no query 17; the store has 2 queries, the first \['who', 'where'\]"),
        (np.int64(17), "no query 17; "),
        (2**70, f"no query {2**70}; "),
    ],
)
@pytest.mark.parametrize("names", [True, False])
def test_an_unknown_query_is_told_the_nearest_names(tmp_path: Path, names: bool, query: Any, message: str) -> None:
    with pytest.raises(KeyError, match=message if names or isinstance(query, str) else "no query"):
        named_store(tmp_path / "store", names=names).scores(query)


def test_an_unknown_number_is_told_the_nearest_numbers(tmp_path: Path) -> None:
    store = ScoreStore.write(tmp_path / "s", np.arange(2), np.array([90, 5, 7, 1]), {"dot": np.zeros((2, 4))})
    with pytest.raises(KeyError, match=r"no query 6; the store has 4 queries, the nearest \[1, 5, 7\]"):
        store.scores(6)
    with pytest.raises(KeyError, match=r"no query '5'; the store has 4 queries, the first \[90, 5, 7\]"):
        store.scores("5")
    empty = ScoreStore.write(tmp_path / "e", np.arange(2), np.array([], int), {"dot": np.zeros((2, 0))})
    with pytest.raises(KeyError, match="no query 6; the store has 0 queries, none"):
        empty.scores(6)


def test_without_a_kind_the_error_says_which_was_taken(tmp_path: Path) -> None:
    store = named_store(tmp_path / "store", cosine=SCORES, update=SCORES)
    message = (
        r"no kind was given, so 'dot' was taken, but expected one of the kinds \['cosine', 'update'\], found 'dot'. "
        "Pass kind='cosine'"
    )
    for ask in (store.scores, store.top, store.to_pandas):
        with pytest.raises(ValueError, match=message):
            ask("who")
    with pytest.raises(ValueError, match=message):
        store.matrix()
    assert named_store(tmp_path / "one", cosine=SCORES).default_kind == "cosine"
    assert named_store(tmp_path / "ranked", update=SCORES, learning=SCORES).default_kind == "learning"
