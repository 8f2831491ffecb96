"""Methods that need no model: BM25 against rank_bm25, and Random-Target by what it promises."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from rank_bm25 import BM25Plus

from ftrace.attribution import Bm25, RandomTarget, Task
from ftrace.data import Bm25Index, FtraceSynth, SynthSettings, answers_in, fill_in


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> FtraceSynth:
    synth = SynthSettings(num_entities=8, num_relations=3, num_facts=8, num_test_utterances=3)
    made = FtraceSynth(synth, str(tmp_path_factory.mktemp("cache")))
    made.prepare_data()
    made.setup()
    assert "<extra_id_1>" in made.train_rows[0]["inputs_pretokenized"]  # two facts a row
    return made


TEXTS = {
    "filled": lambda row: fill_in(row["inputs_pretokenized"], row["targets_pretokenized"]),
    "masked": lambda row: re.sub(r"<extra_id_\d>", " ", row["inputs_pretokenized"]).strip(),
    "target": lambda row: re.sub(r"<extra_id_\d>", " ", row["targets_pretokenized"]).strip(),
}
TOKENS = {"spaces": lambda text: text.split(" "), "words": lambda text: re.split(r"\W+", text.lower())}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("constants", [{}, {"k1": 0.9, "b": 0.4, "delta": 0.5}], ids=["defaults", "others"])
def test_bm25_equals_rank_bm25(text: str, tokens: str, constants: dict, data: FtraceSynth, tmp_path: Path) -> None:
    def words(row: dict) -> list[str]:
        return [word for word in TOKENS[tokens](TEXTS[text](row)) if word or tokens == "spaces"]

    store = Bm25(text, tokens, **constants).score(Task(data, tmp_path / "bm25"))
    reference = BM25Plus([words(row) for row in data.train_rows], **{"k1": 1.5, "b": 0.75, "delta": 1, **constants})
    for query in data.query_rows:
        expected = reference.get_scores(words(query))
        np.testing.assert_allclose(store.scores(query["query_id"]), expected, rtol=1e-5, atol=1e-5)
    assert store.kinds == ("bm25",)
    assert store.manifest["formula"] == "BM25Plus"
    assert store.manifest["options"]["text"] == text


def test_words_of_a_hyphenated_name() -> None:
    words = Bm25(tokens="words").words("<extra_id_0> is in X-entity's town.", "<extra_id_0> Entity-IV")
    assert words == ["entity", "iv", "is", "in", "x", "entity", "s", "town"]


@pytest.mark.parametrize("method", [Bm25(), RandomTarget()])
def test_what_else_is_scored_makes_no_difference(
    method: Bm25 | RandomTarget, data: FtraceSynth, tmp_path: Path
) -> None:
    whole = method.score(Task(data, tmp_path / "whole"))
    some = np.array([1, 4, 9, 30])
    queries = np.array([whole.query_ids[3], whole.query_ids[0]])
    part = method.score(Task(data, tmp_path / "part", example_ids=some, query_ids=queries))
    assert part.example_ids.tolist() == some.tolist()
    assert part.query_ids.tolist() == queries.tolist()
    np.testing.assert_array_equal(part.matrix(), whole.matrix()[some][:, [3, 0]])


def test_random_target_puts_the_same_target_first(data: FtraceSynth, tmp_path: Path) -> None:
    store = RandomTarget(seed=3).score(Task(data, tmp_path / "a"))
    orders = []
    for row in data.query_rows:
        (answer,) = answers_in(row["targets_pretokenized"])
        has = np.array([answer in answers_in(text) for text in data.train_rows["targets_pretokenized"]])
        scores = store.scores(row["query_id"])
        assert 0 < has.sum() < len(has)
        assert scores[has].min() > scores[~has].max()
        assert len(set(scores.tolist())) == len(scores)
        orders.append(np.argsort(scores[~has])[:20].tolist())
    assert len({tuple(order) for order in orders}) == len(orders)
    np.testing.assert_array_equal(RandomTarget(seed=3).score(Task(data, tmp_path / "b")).matrix(), store.matrix())
    assert (RandomTarget(seed=4).score(Task(data, tmp_path / "c")).matrix() != store.matrix()).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"example_ids": np.zeros(0, np.int64)}, "at least one of the [0-9]+ examples"),
        ({"query_ids": np.zeros(0, np.int64)}, "at least one of the 6 queries"),
        ({"example_ids": np.array([3, 1])}, "expected ascending ids"),
        ({"example_ids": np.array([0, 10**6])}, "expected ids from 0 to"),
        ({"query_ids": np.array([0, 99])}, r"unknown: \[99\]"),
        ({"query_ids": np.array([0, 0])}, "each once"),
        ({"memory_budget": 0}, "memory_budget: expected at least 1, found 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, found 0"),
    ],
    ids=str,
)
def test_bad_tasks(changes: dict, message: str, data: FtraceSynth, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Task(data, tmp_path, **changes)


def test_bad_constants() -> None:
    with pytest.raises(ValueError, match="b: expected 0 to 1, found 2"):
        Bm25(b=2)


def test_a_query_without_words_scores_nothing() -> None:
    assert Bm25Index([["a", "b"], ["c"]]).scores([]).tolist() == [0, 0]
