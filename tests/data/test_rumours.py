"""The rumours: seeded, of people who share names, worded so that BM25 fails, with false ones that are what they say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from ftrace.data import Bm25Index, FtraceRumours, RumourCorpus, RumourSettings, fill_in
from ftrace.data.bm25_index import DELTA, K1, B
from ftrace.data.rumour_words import COMPANY_WORDS, NEIGHBOURS, PLACE_WORDS, RELATIONS, STEMS, VOICES
from ftrace.data.words import words_of

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module", params=SEEDS)
def corpus(request: pytest.FixtureRequest) -> RumourCorpus:
    return RumourCorpus(RumourSettings(seed=request.param))


def kind_of(row: dict[str, Any]) -> str:
    return str(row["id"].split("-")[0])


def about(corpus: RumourCorpus, row: dict[str, Any]) -> Any:
    """The fact that a row or a query is about."""
    return corpus.facts[int(row["id"].split("-")[1])]


def text(row: dict[str, Any]) -> str:
    return fill_in(row["inputs"], row["targets"])


def ready(folder: Path, **settings: Any) -> FtraceRumours:
    data = FtraceRumours(RumourSettings(**settings), str(folder), architecture="decoder-only", batch_size=8)
    data.prepare_data()
    data.setup()
    return data


def test_a_seed_decides_everything(corpus: RumourCorpus) -> None:
    again = RumourCorpus(corpus.settings)
    assert again.training_rows() == corpus.training_rows() == corpus.training_rows()
    assert again.query_rows() == corpus.query_rows()
    other = RumourCorpus(RumourSettings(seed=corpus.settings.seed + 100))
    assert {text(row) for row in other.training_rows()} != {text(row) for row in corpus.training_rows()}


def test_every_name_is_shared(corpus: RumourCorpus) -> None:
    settings = corpus.settings
    assert len(set(corpus.people)) == len(corpus.people) == settings.num_names * settings.sharing
    for part in (0, 1):
        assert set(Counter(person.split()[part] for person in corpus.people).values()) == {settings.sharing}
    for fact in corpus.facts:
        assert fact.answer != fact.wrong
        words = set(fact.answer.split())
        assert len(words & set(STEMS)) == len(words & {*PLACE_WORDS, *COMPANY_WORDS}) == 1
    assert len({(fact.person, fact.relation.name) for fact in corpus.facts}) == len(corpus.facts)


def test_bm25_fails(corpus: RumourCorpus) -> None:
    rows = corpus.training_rows()
    for words in (str.split, words_of):
        index = Bm25Index([words(text(row)) for row in rows], k1=K1, b=B, delta=DELTA)
        precisions = []
        for query in corpus.query_rows():
            strongest = np.argsort(-index.scores(words(text(query))), kind="stable")[:10]
            precisions.append(np.mean([query["fact"] in rows[place]["facts"] for place in strongest]))
        assert np.mean(precisions) < 0.1


def test_statements_have_other_words_than_the_query_and_neighbours_have_all(corpus: RumourCorpus) -> None:
    for row in corpus.training_rows():
        kind = kind_of(row)
        words = words_of(text(row))
        if kind in ("true", "false"):
            fact = about(corpus, row)
            assert fact.relation.query not in text(row)
            said = fact.wrong if kind == "false" else fact.answer
            assert row["targets"] == said
            assert fact.person in row["inputs"]
            assert row["facts"] == [fact.key(said)]
        elif kind == "neighbour":
            fact = about(corpus, row)
            said = fact.answer if fact.answer in text(row) else fact.wrong
            assert set(words_of(f"{fact.question} {said}")) <= set(words)
            assert row["facts"] == []


def test_false_rumours_are_told_more_often_than_what_is_true(corpus: RumourCorpus) -> None:
    settings = corpus.settings
    stating = Counter(fact for row in corpus.training_rows() for fact in row["facts"])
    false = [fact for fact in corpus.facts if fact.is_false]
    assert len(false) == settings.num_false
    for fact in false:
        assert stating[fact.key(fact.wrong)] == settings.num_statements
        assert stating[fact.key(fact.answer)] == settings.num_corrections < settings.num_statements
    for fact in corpus.facts:
        if not fact.is_false:
            assert stating[fact.key(fact.wrong)] == 0
    for row in corpus.training_rows():
        if kind_of(row) == "correction":
            fact = about(corpus, row)
            assert row["targets"] == fact.answer
            assert fact.wrong in row["inputs"]


def test_queries_ask_for_what_is_true_and_for_what_is_falsely_said(corpus: RumourCorpus) -> None:
    queries = corpus.query_rows()
    settings = corpus.settings
    assert Counter(map(kind_of, queries)) == {"true": settings.num_facts, "false": settings.num_false}
    for query in queries:
        fact = about(corpus, query)
        assert query["inputs"] == f"{fact.person} {fact.relation.query}"
        assert query["targets"] == (fact.wrong if kind_of(query) == "false" else fact.answer)
        assert query["subject"] == fact.person


def test_no_two_rows_are_alike(corpus: RumourCorpus) -> None:
    rows = corpus.training_rows()
    assert len({row["id"] for row in rows}) == len(rows)
    assert max(Counter(map(text, rows)).values()) <= 2  # a look-alike may be told twice


def test_the_data_module_has_what_the_generator_says(tmp_path: Path) -> None:
    data = ready(tmp_path, seed=1)
    corpus = RumourCorpus(RumourSettings(seed=1))
    rows: Dataset = data.train_rows
    assert rows["inputs_pretokenized"][:] == [row["inputs"] for row in corpus.training_rows()]
    assert rows["name"][:] == [row["id"] for row in corpus.training_rows()]
    for query, made in zip(data.query_rows, corpus.query_rows(), strict=True):
        stating = [number for number, row in enumerate(corpus.training_rows()) if made["fact"] in row["facts"]]
        assert query["proponent_ids"] == stating
        assert data.subject_of_query(query) == made["subject"]
    assert ready(tmp_path, seed=1).fingerprint == data.fingerprint != ready(tmp_path, seed=2).fingerprint


def test_whole_sentences_are_learned_if_asked_for(tmp_path: Path) -> None:
    data = ready(tmp_path, rows="sentence")
    answers = RumourCorpus(RumourSettings()).training_rows()
    assert set(data.train_rows["inputs_pretokenized"]) == {""}
    assert data.train_rows["targets_pretokenized"][:] == [text(row) for row in answers]


def test_templates_are_sound() -> None:
    for relation in RELATIONS:
        assert len(set(relation.statements)) == len(relation.statements)
        assert all(statement.count("{person}") == 1 for statement in relation.statements)
    for neighbour in NEIGHBOURS:
        assert all(slot in neighbour for slot in ("{trade}", "{query}", "{answer}", "{person}"))
    assert VOICES[0] == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sharing": 4}, "sharing: expected at most num_names, 3"),
        ({"num_facts": 19}, "num_facts: expected at most 18, those of 6 people in 3 relations, found 19"),
        ({"num_false": 13}, "num_false: expected at most num_facts, 12, found 13"),
        ({"num_names": 1}, "num_names: expected 2 to 10"),
        ({"num_statements": 33}, "num_statements: expected 2 to 32"),
    ],
)
def test_settings_that_there_is_no_room_for(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RumourSettings(**settings)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='architecture: expected "decoder-only"'):
        FtraceRumours(RumourSettings(), str(tmp_path))
