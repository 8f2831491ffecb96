"""Which kind an example is, on facts made by hand and against plain reading of a data set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftrace.data import FactCorpus, FactParts, FtraceSynth, FtraceTrex, SynthSettings
from ftrace.evaluation.tail_patch import KINDS, ExampleKinds
from ftrace.evaluation.tail_patch.example_kinds import kind_of

FACT = FactParts("born in", "Ada", "London")


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ([FACT], "states the fact"),
        ([("died in", "Ada", "London")], "same subject"),  # the object too, but the subject comes first
        ([("died in", "Ada", "Paris")], "same subject"),
        ([("daughter of", "Annabella", "Ada")], "same subject"),  # in the object's place
        ([("born in", "London", "Ada")], "same subject"),  # the fact turned around
        ([("died in", "Charles", "London")], "same object"),
        ([("capital of", "London", "England")], "same object"),
        ([("born in", "Charles", "London")], "same object"),  # the relation too, but the object comes first
        ([("born in", "Charles", "Paris")], "same relation"),
        ([("died in", "Charles", "Paris")], "other"),
        ([], "other"),
        ([("died in", "Charles", "Paris"), FACT], "states the fact"),
        ([("born in", "Charles", "Paris"), ("died in", "Charles", "London")], "same object"),
    ],
    ids=str,
)
def test_the_best_of_an_examples_facts_counts(stated: list[tuple[str, str, str]], expected: str) -> None:
    assert KINDS[kind_of(FACT, [FactParts(*one) for one in stated])] == expected


def test_a_known_proponent_states_the_fact_whatever_its_facts() -> None:
    assert KINDS[kind_of(FACT, [], states_fact=True)] == "states the fact"


def set_up(data: FtraceSynth | FtraceTrex | FactCorpus) -> None:
    data.prepare_data()
    data.setup()


def test_rows_of_two_facts(tmp_path: Path) -> None:
    data = FtraceSynth(
        SynthSettings(num_entities=12, num_relations=3, num_facts=12, num_test_utterances=4), str(tmp_path)
    )
    set_up(data)
    kinds, seen = ExampleKinds(data), set()
    for query in data.query_rows:
        relation, subject, of = query["fact"].split("-")
        found = kinds.of(query["query_id"], range(len(data.train_rows)))
        for row, kind in zip(data.train_rows, found.tolist(), strict=True):
            words = [fact.split("-") for fact in row["facts"]]
            if query["fact"] in row["facts"]:
                expected = "states the fact"
            elif any(subject in fact[1:] for fact in words):
                expected = "same subject"
            elif any(of in fact[1:] for fact in words):
                expected = "same object"
            elif any(relation == fact[0] for fact in words):
                expected = "same relation"
            else:
                expected = "other"
            assert KINDS[kind] == expected
            assert (kind == 0) == (row["example_id"] in query["proponent_ids"])
            seen.add(expected)
    assert seen == set(KINDS)


def test_keys_of_trex_name_the_object_before_the_subject(tmp_path: Path) -> None:
    data = FtraceTrex("sample", str(tmp_path))
    set_up(data)
    assert data.parts_of_fact("P361,Q48,Q771405") == FactParts("P361", "Q771405", "Q48")
    kinds = ExampleKinds(data)
    for query, proponents in data.proponents.items():
        assert not kinds.of(query, proponents).any()  # all state the fact
    with pytest.raises(ValueError, match="fact: expected a key such as P361,Q48,Q771405, found 'r1-e2-e3'"):
        data.parts_of_fact("r1-e2-e3")


def test_keys_of_synth(tmp_path: Path) -> None:
    data = FtraceSynth(SynthSettings(), str(tmp_path))
    assert data.parts_of_fact("r3-e10-e2") == FactParts("r3", "e10", "e2")
    with pytest.raises(ValueError, match="fact: expected a key such as r3-e1-e2, found 'P1,Q2,Q3'"):
        data.parts_of_fact("P1,Q2,Q3")


def test_keys_of_ones_own_data_are_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"inputs": "a b", "targets": "c", "facts": ["r1-e1-e2"]}))
    (tmp_path / "queries.jsonl").write_text(json.dumps({"inputs": "a b", "targets": "c", "fact": "r1-e1-e2"}))
    data = FactCorpus(str(tmp_path / "train.jsonl"), str(tmp_path / "queries.jsonl"), str(tmp_path / "cache"))
    set_up(data)
    with pytest.raises(ValueError, match="and the keys of FactCorpus don't name them"):
        ExampleKinds(data)


def test_data_of_ones_own_may_tell(tmp_path: Path) -> None:
    class Told(FactCorpus):
        def parts_of_fact(self, fact: str) -> FactParts:
            return FactParts(*fact.split("|"))

    (tmp_path / "train.jsonl").write_text(json.dumps({"inputs": "a", "targets": "c", "facts": ["is|Ada|old"]}))
    (tmp_path / "queries.jsonl").write_text(json.dumps({"inputs": "a", "targets": "c", "fact": "was|Ada|young"}))
    data = Told(str(tmp_path / "train.jsonl"), str(tmp_path / "queries.jsonl"), str(tmp_path / "cache"))
    set_up(data)
    assert KINDS[int(ExampleKinds(data).of(0, [0])[0])] == "same subject"
