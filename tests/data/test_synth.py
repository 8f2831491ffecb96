"""FTRACE-SYNTH: the published facts, rows that state what they claim to, and errors that say what is wrong."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from ftrace.data import FtraceSynth, SynthCorpus, SynthSettings, fill_in, write_synth
from ftrace.data.synth_entities import roman
from ftrace.data.synth_vocabularies import read_relations

SMALL = {"num_entities": 12, "num_relations": 4, "num_facts": 20, "num_test_utterances": 5}
DEMO = {
    "num_entities": 50, "num_relations": 10, "num_facts": 200, "num_test_utterances": 40, "num_facts_per_utterance": 1,
    "collisions": "forbid",
}  # fmt: skip


@pytest.fixture(scope="module")
def published() -> SynthCorpus:
    return SynthCorpus(SynthSettings())


def test_facts_and_test_facts_are_the_published_ones(published: SynthCorpus) -> None:
    """Against the published algorithm, written down naively."""
    rng = np.random.RandomState(0)
    seen: set[Any] = set()
    facts: set[Any] = set()
    draws = 0
    while len(facts) < 50000:
        relation, first, second = (int(rng.randint(0, high)) for high in (37, 5000, 5000))
        partial = {(relation, None, second), (relation, first, None)}
        if not partial & seen:
            facts.add((relation, (first, second)))
        seen |= partial
        draws += 1
    assert draws == 71964
    listed = list(facts)
    assert published.facts == listed
    assert published.test_facts.tolist() == rng.choice(50000, 5000, replace=False).tolist()
    assert (17, (710, 2170)) in facts
    assert (30, (1004, 4784)) in {published.facts[index] for index in published.test_facts}


def test_relations_share_surfaces_as_published(tmp_path: Path) -> None:
    lines = [f"{{0}} verb{i} {{1}} | {{1}} brev{i} {{0}}" for i in range(37)]
    lines[12] = "{0} is a member of {1} | {1} accepted {0} as a member"
    (tmp_path / "relations.txt").write_text("\n".join(lines))
    settings = SynthSettings(relation_vocabulary=str(tmp_path / "relations.txt"))
    corpus = SynthCorpus(settings)
    uses = Counter(surfaces[0] for surfaces in corpus.relations)
    assert len(uses) == 24
    assert sum(count > 1 for count in uses.values()) == 9
    fact = corpus.facts.index((30, (1004, 4784)))
    utterances = [corpus.utterance(index) for index in range(32 * fact, 32 * fact + 32)]
    masked = {utterance.masked(0, 0): utterance.name for utterance in utterances}
    published_row = "<extra_id_0> is a member of MMMMDCCLXXXIV-entity", "<extra_id_0> entity-MIV"
    assert masked[published_row] == "r30-e1004-e4784-rx0-ex2-ex3"


def test_two_facts_a_row_give_as_many_rows_as_published(published: SynthCorpus) -> None:
    assert len(published.training_utterances) == 1_595_000
    assert published.num_rows == 3_190_000
    proponents = published._proponent_rows()
    counts = Counter(len(rows) for rows in proponents.values())
    assert counts.most_common(1)[0][0] == 124


@pytest.mark.parametrize("facts_a_row", [1, 2, 3])
def test_rows_and_queries_state_what_they_claim(facts_a_row: int) -> None:
    corpus = SynthCorpus(SynthSettings(**SMALL, num_facts_per_utterance=facts_a_row, collisions="forbid"))
    rows = list(corpus.training_rows())
    assert len(rows) == corpus.num_rows
    assert [row["example_id"] for row in rows] == list(range(len(rows)))
    assert len({row["guid"] for row in rows}) == len(rows)
    utterances = {name for row in rows for name in itertools.accumulate(row["guid"].split(","), lambda _, name: name)}
    assert len(utterances) == 2 * len(corpus.training_utterances)  # either entity masked
    for row in rows:
        assert row["inputs_pretokenized"].count("<extra_id_") == len(row["facts"])
        assert "<extra_id_" not in fill_in(row["inputs_pretokenized"], row["targets_pretokenized"])
        for name, fact in zip(row["guid"].split(","), row["facts"], strict=True):
            assert name.startswith(fact + "-rx")

    held_out = set()
    for query in corpus.query_rows():
        sentence = fill_in(query["inputs_pretokenized"], query["targets_pretokenized"])
        held_out.add(sentence)
        assert query["targets_pretokenized"].removeprefix("<extra_id_0> ") in query["answers"]
        assert len(query["answers"]) == 4
        stating = [row["example_id"] for row in rows if query["fact"] in row["facts"]]
        assert list(query["proponent_ids"]) == stating
        assert len(stating) >= 31
    assert len(held_out) == 5
    if facts_a_row == 1:
        assert not held_out & {fill_in(row["inputs_pretokenized"], row["targets_pretokenized"]) for row in rows}


@pytest.mark.parametrize("expressions", [1, 2])
def test_proponents_and_answers_are_of_the_rows_and_surfaces_that_there_are(expressions: int) -> None:
    """The last row may hold fewer facts, and so fewer ways to mask them."""
    settings = {**SMALL, "num_facts_per_utterance": 3, "num_expressions_per_entity": expressions}
    short = 0
    for seed in range(8):
        corpus = SynthCorpus(SynthSettings(**settings, seed=seed))
        rows = list(corpus.training_rows())
        last = len(corpus.training_utterances) % 3
        short += bool(last)
        for query in corpus.query_rows():
            stating = [row["example_id"] for row in rows if query["fact"] in row["facts"]]
            assert list(query["proponent_ids"]) == stating
            assert len(query["answers"]) == expressions
    assert short


def test_every_draw_follows_the_seed() -> None:
    def rows(seed: int) -> list[dict[str, Any]]:
        return list(SynthCorpus(SynthSettings(**SMALL, seed=seed)).training_rows())

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)


@pytest.mark.parametrize(
    ("flags", "digest", "folder"),
    [
        (SMALL, "ca8e158b51b88c91", "synth-b8824b0d6962"),
        (DEMO, "0921fe503fb260d0", "synth-a631f34d7c12"),
        ({**DEMO, "seed": 3, "num_facts_per_utterance": 2, "collisions": "allow"}, "612f844285cf1e95",
         "synth-83000dc1197b"),
    ],
)  # fmt: skip
def test_rows_and_folders_of_the_published_form_never_change(flags: dict[str, Any], digest: str, folder: str) -> None:
    """Studies and cached data count on it, bit by bit."""
    corpus = SynthCorpus(SynthSettings(**flags))
    text = hashlib.sha256()
    for row in itertools.chain(corpus.training_rows(), corpus.query_rows()):
        plain = {name: [int(one) for one in row[name]] if name == "proponent_ids" else row[name] for name in row}
        text.update(json.dumps(plain).encode())
    assert text.hexdigest()[:16] == digest
    assert FtraceSynth(SynthSettings(**flags)).data_path.name == folder
    assert set(SynthSettings(**flags).flags()) == {field.name for field in fields(SynthSettings)} - {"entities"}


def test_facts_are_joined_by_the_separator() -> None:
    settings = SynthSettings(**SMALL, separator=" ## ")
    row = next(SynthCorpus(settings).training_rows())
    assert row["inputs_pretokenized"].count(" ## ") == 1


def test_forbidden_collisions_give_each_relation_its_own_surface() -> None:
    corpus = SynthCorpus(SynthSettings(num_entities=60, num_facts=100, num_test_utterances=5, collisions="forbid"))
    surfaces = [surface for relation in corpus.relations for surface in relation]
    assert len(set(surfaces)) == len(surfaces) == 74


def test_shipped_vocabulary_is_large_and_has_no_two_alike() -> None:
    relations = read_relations()
    assert len(relations) >= 40
    assert all(len(relation.paraphrases) >= 2 for relation in relations)
    surfaces = [surface.lower() for relation in relations for surface in relation.paraphrases]
    assert len(set(surfaces)) == len(surfaces)


@pytest.mark.parametrize(("number", "numeral"), [(0, "N"), (4, "IV"), (1994, "MCMXCIV"), (4999, "MMMMCMXCIX")])
def test_roman_numerals(number: int, numeral: str) -> None:
    assert roman(number) == numeral


def test_load_dataset_reads_the_folder_as_it_is(tmp_path: Path) -> None:
    folder = write_synth(tmp_path / "synth", SynthSettings(**SMALL))
    assert {path.name for path in folder.iterdir()} == {
        "facts.parquet", "train.parquet", "queries.parquet", "manifest.json", "README.md",
    }  # fmt: skip
    corpus = SynthCorpus(SynthSettings(**SMALL))
    cache = str(tmp_path / "cache")
    train = datasets.load_dataset(str(folder), cache_dir=cache)["train"]
    assert train[5] == list(corpus.training_rows())[5]
    queries = datasets.load_dataset(str(folder), "queries", cache_dir=cache)["train"]
    assert queries[3] == {**(row := list(corpus.query_rows())[3]), "proponent_ids": list(row["proponent_ids"])}
    facts = datasets.load_dataset(str(folder), "facts", cache_dir=cache)["train"]
    assert sum(facts["is_test"]) == 5
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["settings"]["num_entities"] == 12
    assert (manifest["num_train"], manifest["num_queries"], manifest["num_facts"]) == (len(train), 10, 20)


def test_an_earlier_folder_is_replaced_and_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_synth(tmp_path / "synth", SynthSettings(**SMALL))
    write_synth(tmp_path / "synth", SynthSettings(**SMALL, seed=3))
    assert json.loads((tmp_path / "synth" / "manifest.json").read_text())["settings"]["seed"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["synth"]
    (tmp_path / "synth" / "notes.txt").touch()
    with pytest.raises(ValueError, match="holds something else"):
        write_synth(tmp_path / "synth", SynthSettings(**SMALL))
    monkeypatch.chdir(tmp_path / "synth")
    with pytest.raises(ValueError, match="found the working directory"):
        write_synth(".", SynthSettings(**SMALL))
    assert (tmp_path / "synth" / "notes.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").touch()
    with pytest.raises(ValueError, match="holds something else"):
        write_synth(tmp_path / "other", SynthSettings(**SMALL))


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SynthCorpus, "training_rows", lambda _: iter([{"example_id": "no number"}]))
    with pytest.raises(Exception, match=r".+"):
        write_synth(tmp_path / "synth", SynthSettings(**SMALL))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_facts": 0}, "num_facts: expected 1 to 10,000,000, found 0"),
        ({"num_test_utterances": 21}, "expected at most one for each of the 20 facts, found 21"),
        ({"num_facts_per_utterance": 30}, "num_facts_per_utterance: expected 1 to 8, found 30"),
        ({"num_expressions_per_entity": 5}, "num_expressions_per_entity: expected 1 to 4, found 5"),
        ({"num_entity_words": 2}, "num_entity_words: expected 1, found 2. The published generator reads this flag"),
        ({"entity_vocabulary": "/names.txt"}, "entity_vocabulary: can't read '/names.txt'"),
        ({"collisions": "maybe"}, "collisions: expected one of"),
        ({"seed": -1}, "seed: expected 0 to"),
        ({"num_relations": 99}, "num_relations: expected at most 48, the lines of the vocabulary of ftrace, found 99"),
        ({"relation_vocabulary": "/nowhere.txt"}, "can't read '/nowhere.txt'"),
    ],
    ids=str,
)
def test_bad_settings_are_named_and_nothing_is_written(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_synth(tmp_path / "synth", SynthSettings(**{**SMALL, **settings}))
    assert list(tmp_path.iterdir()) == []


def test_more_facts_than_fit_says_how_many_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"num_facts: expected at most (\d+), all that fit 4 one-to-one") as caught:
        SynthCorpus(SynthSettings(**{**SMALL, "num_facts": 48}))
    fits = int(str(caught.value).split("at most ")[1].split(",")[0])
    assert len(SynthCorpus(SynthSettings(**{**SMALL, "num_facts": fits})).facts) == fits
    with pytest.raises(ValueError, match=f"at most {fits}"):
        SynthCorpus(SynthSettings(**{**SMALL, "num_facts": fits + 1}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{0} was born | {1} bore {0}", "line 2: '{0} was born' has no {1}"),
        ("{0} met {1} | met {1}", "line 2: 'met {1}' has no {0}"),
        ("{0} met {1} at {2}", "line 2: '{0} met {1} at {2}' has other slots"),
        ("{0} met {1:d}", "has other slots"),
        ("{0} met {1", "is no template"),
    ],
)
def test_bad_vocabularies_are_named(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "relations.txt"
    file.write_text("{0} likes {1}\n" + line)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_relations(file)


def test_a_vocabulary_is_utf_8_with_a_byte_order_mark_or_without(tmp_path: Path) -> None:
    file = tmp_path / "relations.txt"
    for mark in ("", "\ufeff"):
        file.write_text(f"{mark}{{0}} möchte {{1}}\n", encoding="utf-8")
        assert [relation.paraphrases for relation in read_relations(file)] == [["{0} möchte {1}"]]
    for encoding in ("latin-1", "utf-16"):
        file.write_text("{0} möchte {1}\n", encoding=encoding)
        with pytest.raises(ValueError, match=r"relations\.txt: expected UTF-8, found .*Save the file as UTF-8"):
            read_relations(file)


def test_forbidden_collisions_in_a_vocabulary_are_named(tmp_path: Path) -> None:
    file = tmp_path / "relations.txt"
    file.write_text("{0} likes {1}\n{1} hates {0} | {0} likes {1}\n")
    with pytest.raises(ValueError, match=re.escape("found '{0} likes {1}' twice")):
        SynthCorpus(SynthSettings(**{**SMALL, "num_relations": 2}, relation_vocabulary=str(file), collisions="forbid"))
