"""FTRACE-SYNTH with readable entities: typed facts, names that can't be confused, errors that say what is wrong."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from ftrace.data import (
    FactParts,
    FtraceSynth,
    SynthCorpus,
    SynthSettings,
    fill_in,
    prompts_of_queries,
    tokenize_prompt,
    write_synth,
)
from ftrace.data.synth_vocabularies import read_entities, read_relations, vocabulary_text
from ftrace.data.words import words_of
from ftrace.evaluation.beam_search import is_right

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text()
SMALL: dict[str, Any] = {
    "num_entities": 24, "num_relations": 6, "num_facts": 20, "num_test_utterances": 8, "num_facts_per_utterance": 1,
    "collisions": "forbid", "entities": "readable",
}  # fmt: skip
PEOPLE = "person | Ann Lee | Lee, Ann\nperson | Bo Day | Day, Bo\n"
PLACES = "place | Port Ray | the Blue City\nplace | Old Fen | the Dry City\n"


@pytest.fixture(scope="module")
def corpus() -> SynthCorpus:
    return SynthCorpus(SynthSettings(**SMALL))


def vocabularies(folder: Path, entities: str, relations: str = "person, place | {0} left {1}\n") -> dict[str, Any]:
    """Flags of a small corpus with two vocabularies of one's own."""
    (folder / "entities.txt").write_text(entities)
    (folder / "relations.txt").write_text(relations)
    return {
        "entity_vocabulary": str(folder / "entities.txt"), "relation_vocabulary": str(folder / "relations.txt"),
        "num_entities": 4, "num_relations": 1, "num_facts": 2, "num_test_utterances": 1,
        "num_expressions_per_entity": 2, "num_facts_per_utterance": 1,
    }  # fmt: skip


def ready(folder: Path, architecture: Any = "encoder-decoder", **changes: Any) -> FtraceSynth:
    data = FtraceSynth(SynthSettings(**{**SMALL, **changes}), str(folder), architecture, batch_size=16)
    data.prepare_data()
    data.setup()
    return data


def test_the_shipped_vocabulary_is_large_balanced_and_has_four_surfaces_each() -> None:
    entities = read_entities()
    assert Counter(entity.type for entity in entities) == {"person": 104, "place": 104, "work": 104, "company": 104}
    assert all(len(entity.surfaces) == 4 for entity in entities)
    spelled = ["".join(words_of(surface)) for entity in entities for surface in entity.surfaces]
    assert len(set(spelled)) == len(spelled) == 1664


def test_the_shipped_relations_are_typed_and_no_two_surfaces_are_alike() -> None:
    relations = read_relations(readable=True)
    types = {entity.type for entity in read_entities()}
    assert len(relations) >= 20
    assert {name for relation in relations for name in relation.types or ("none",)} == types
    assert all(len(relation.paraphrases) == 2 for relation in relations)
    surfaces = [surface.lower() for relation in relations for surface in relation.paraphrases]
    assert len(set(surfaces)) == len(surfaces)


@pytest.mark.parametrize("seed", range(4))
def test_facts_respect_types_and_are_one_to_one(seed: int) -> None:
    corpus = SynthCorpus(SynthSettings(**{**SMALL, "num_facts": 30}, seed=seed))
    assert corpus.entities is not None
    assert corpus.relation_types is not None
    assert len(set(corpus.facts)) == len(corpus.facts) == 30
    for relation, pair in corpus.facts:
        assert tuple(corpus.entities[entity].type for entity in pair) == corpus.relation_types[relation]
    taken = Counter((relation, entity) for relation, pair in corpus.facts for entity in pair)
    assert set(taken.values()) == {1}  # nor has a teacher a teacher


def test_entities_are_as_many_of_each_type_while_there_are_enough(tmp_path: Path, corpus: SynthCorpus) -> None:
    assert corpus.entities is not None
    assert set(Counter(entity.type for entity in corpus.entities).values()) == {6}
    flags = vocabularies(tmp_path, PEOPLE + PLACES + "person | Cy Oak | Oak, Cy\nperson | Di Elm | Elm, Di\n")
    entities = SynthCorpus(SynthSettings(**{**flags, "num_entities": 5})).entities
    assert Counter(entity.type for entity in entities or ()) == {"person": 3, "place": 2}


def test_rows_and_queries_state_what_they_claim(corpus: SynthCorpus) -> None:
    rows = list(corpus.training_rows())
    sentences = {fill_in(row["inputs_pretokenized"], row["targets_pretokenized"]) for row in rows}
    assert len(rows) == corpus.num_rows == 20 * 64 - 16
    assert len(sentences) == 20 * 32 - 8
    surfaces = {surface for entity in corpus.entities or () for surface in entity.surfaces}
    for query in corpus.query_rows():
        text, answer = query["inputs_pretokenized"], query["targets_pretokenized"].removeprefix("<extra_id_0> ")
        assert answer in query["answers"]
        assert len(query["answers"]) == 4
        assert set(query["answers"]) <= surfaces
        assert query["subject"] in surfaces - set(query["answers"])
        assert text.count(query["subject"]) == text.count("<extra_id_0>") == 1
        assert fill_in(text, query["targets_pretokenized"]) not in sentences
        assert list(query["proponent_ids"]) == [row["example_id"] for row in rows if query["fact"] in row["facts"]]
        assert len(query["proponent_ids"]) == 62


def test_sentences_are_plain_text_with_the_names_in_it() -> None:
    corpus = SynthCorpus(SynthSettings(**SMALL))
    utterance = corpus.utterance(0)
    whole = fill_in(*utterance.masked(0, 0))
    assert whole == fill_in(*utterance.masked(1, 0)) == utterance.template.format(*utterance.surfaces)
    assert not re.search(r"entity|[{}<>|]", whole)


def test_every_draw_follows_the_seed(corpus: SynthCorpus) -> None:
    again, other = SynthCorpus(SynthSettings(**SMALL)), SynthCorpus(SynthSettings(**SMALL, seed=1))
    assert list(again.training_rows()) == list(corpus.training_rows())
    assert (again.entities, again.facts) == (corpus.entities, corpus.facts)
    assert other.entities != corpus.entities


def test_numbered_entities_take_typed_relations_too(tmp_path: Path) -> None:
    both = []
    for name, types in (("typed", "person, place | "), ("untyped", "")):
        (tmp_path / name).write_text(f"{types}{{0}} left {{1}} | {{1}} lost {{0}}\n")
        flags = {**SMALL, "entities": "numbered", "num_relations": 1, "num_facts": 5, "num_test_utterances": 2}
        corpus = SynthCorpus(SynthSettings(**{**flags, "relation_vocabulary": str(tmp_path / name)}))
        both.append(list(corpus.training_rows()))
    assert both[0] == both[1]
    assert "entity" in both[0][0]["inputs_pretokenized"]


def test_vocabularies_of_ones_own_need_no_other_flag(tmp_path: Path) -> None:
    settings = SynthSettings(**vocabularies(tmp_path, PEOPLE + PLACES))
    sentences = {fill_in(row["inputs_pretokenized"], row["targets_pretokenized"]) for row in
                 SynthCorpus(settings).training_rows()}  # fmt: skip
    assert len(sentences) == 2 * 4 - 1
    assert all(re.fullmatch(r"(Ann Lee|Lee, Ann|Bo Day|Day, Bo) left (Port Ray|Old Fen|the \w+ City)", sentence)
               for sentence in sentences)  # fmt: skip


def test_the_folder_names_entities_and_types(tmp_path: Path, corpus: SynthCorpus) -> None:
    folder = write_synth(tmp_path / "synth", SynthSettings(**SMALL))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["settings"]["entities"] == "readable"
    assert [(one["type"], tuple(one["surfaces"])) for one in manifest["entities"]] == corpus.entities
    assert [tuple(types) for types in manifest["relation_types"]] == corpus.relation_types
    cache = str(tmp_path / "cache")
    queries = datasets.load_dataset(str(folder), "queries", cache_dir=cache)["train"]
    assert queries["subject"][:] == [row["subject"] for row in corpus.query_rows()]
    facts = datasets.load_dataset(str(folder), "facts", cache_dir=cache)["train"]
    types = [manifest["relation_types"][relation] for relation in facts["relation"]]
    assert [manifest["entities"][entity]["type"] for entity in facts["entity_1"]] == [second for _, second in types]


def test_the_data_folder_is_named_by_the_vocabularies_texts(tmp_path: Path) -> None:
    names = []
    for folder, city in (("a", "Blue"), ("b", "Blue"), ("c", "Red")):
        (tmp_path / folder).mkdir()
        flags = vocabularies(tmp_path / folder, PEOPLE + PLACES.replace("Blue", city))
        names.append(FtraceSynth(SynthSettings(**flags), data_dir=str(tmp_path)).data_path.name)
    assert names[0] == names[1] != names[2]
    assert (
        FtraceSynth(SynthSettings(**SMALL)).data_path
        != FtraceSynth(SynthSettings(**{**SMALL, "entities": "numbered"})).data_path
    )


@pytest.mark.parametrize("architecture", ["encoder-decoder", "decoder-only"])
def test_batches_prompts_and_answers_are_of_the_names(architecture: Any, tmp_path: Path) -> None:
    """Names of several words, with commas, dots and ampersands, become tokens and come back as they were."""
    data = ready(tmp_path, architecture)
    batch = next(iter(data.query_dataloader()))
    unknown = data.tokenizer.unk_token_id
    assert not any((batch[name] == unknown).any() for name in ("input_ids", "answer_labels"))
    for row, answers in zip(data.query_rows, batch["answer_labels"], strict=True):
        spelled = [data.tokenizer.decode(labels[labels >= 0][:-1]) for labels in answers]
        assert [text.removeprefix("<extra_id_0> ") for text in spelled] == row["answers"]
        assert all(is_right(text, row["answers"]) for text in spelled)
        assert data.subject_of_query(row) == row["subject"]
        relation, first, second = row["fact"].split("-")
        assert data.parts_of_fact(row["fact"]) == FactParts(relation, first, second)
    decoder_start = 0 if architecture == "encoder-decoder" else None
    for prompt in prompts_of_queries(data):
        tokenized = tokenize_prompt(prompt, data.tokenizer, decoder_start=decoder_start, as_trained=True)
        first, end = tokenized.subject
        assert data.tokenizer.decode(tokenized.input_ids[first:end]) == prompt.subject
        assert len(tokenized.answers) == 4


def test_names_that_share_words_are_right_for_one_entity_only() -> None:
    entities = read_entities()
    answers = {surface: entity for entity in entities for surface in entity.surfaces}
    for surface, entity in itertools.islice(answers.items(), 0, None, 7):
        assert [other for other in entities if is_right(f"<extra_id_0> {surface}", other.surfaces)] == [entity]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("person", "line 5: expected a type and 1 to 4 surfaces, such as"),
        ("person | A B | C | D | E | F", "line 5: expected a type and 1 to 4 surfaces, .*found 5 surfaces"),
        ("Ann May | May, Ann", "line 5: expected a type of one word first, such as person, found 'Ann May'"),
        (" | Ann May", "line 5: expected a type of one word first, such as person, found ''"),
        ("person | Ann May | ", "line 5: '' is no surface: it has no letter or digit"),
        ("person | ?!", "'\\?!' is no surface: it has no letter or digit"),
        ("person | Ann <extra_id_0>", "is no surface: it has a mask in it"),
        ("person | Ann\x1b[31m May", "is no surface: it has a control character in it"),
        ("person | Ann May | ANN MAY", "'ANN MAY' is also a surface of .*line 5, apart from case"),
        ("place | ann-lee", "line 5: 'ann-lee' is also a surface of .*line 1, apart from case, spaces and punct"),
        ("place | Annlee", "line 5: 'Annlee' is also a surface of .*line 1"),
        (
            "person | Lee",
            "line 5: 'lee' is also a part of 'Ann Lee' of .*line 1. Give each entity surfaces that are no",
        ),
        ("place | Upper Port Ray", "line 3: 'port ray' is also a part of 'Upper Port Ray' of .*line 5"),
    ],
)
def test_bad_vocabularies_of_entities_are_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "entities.txt").write_text(PEOPLE + PLACES + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_entities(tmp_path / "entities.txt")


def test_surfaces_are_read_with_single_spaces_and_may_share_words(tmp_path: Path) -> None:
    (tmp_path / "entities.txt").write_text("\ufeffperson |  Ann   Lee\n\nperson | Ann Day | Day\n", encoding="utf-8")
    assert read_entities(tmp_path / "entities.txt") == [("person", ("Ann Lee",)), ("person", ("Ann Day", "Day"))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entities": "named"}, r"entities: expected one of \['numbered', 'readable'\], found 'named'"),
        ({"num_entities": 417}, "num_entities: expected at most 416, the lines of the vocabulary of ftrace, found 417"),
        ({"num_relations": 21}, "num_relations: expected at most 20, the lines of the vocabulary of ftrace, found 21"),
        ({"entity_vocabulary": "/nowhere.txt"}, "entity_vocabulary: can't read '/nowhere.txt'"),
        (
            {"num_facts": 37},
            "num_facts: expected at most \\d+, all that fit 6 one-to-one relations between 24 ",
        ),
    ],
    ids=str,
)
def test_bad_settings_are_named_and_nothing_is_written(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_synth(tmp_path / "synth", SynthSettings(**{**SMALL, **changes}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("entities", "relations", "message"),
    [
        (PEOPLE + PLACES, "{0} left {1}\n", "line 1: expected the types of both slots first, .* found none"),
        (PEOPLE + PLACES, "person, ship | {0} left {1}\n", r"\['person', 'place'\], found 'ship'"),
        (PEOPLE + PLACES, "person, place |\n", "line 1: '' has no {0}"),
        (PEOPLE + PLACES, "person, place\n", "line 1: expected a paraphrase after the types 'person, place'"),
        (PEOPLE + PLACES, "person | {0} left {1}\n", "line 1: 'person' has no {0}"),
        (PEOPLE + "place | Port Ray\n", "person, place | {0} left {1}\n", "num_entities: expected at most 3"),
        (PEOPLE + PLACES + "place | Rye\n", "person, place | {0} left {1}\n",
         "num_expressions_per_entity: expected at most 1, the surfaces of 'Rye' in .*, found 2"),
        ("\n", "person, place | {0} left {1}\n", "entities.txt: expected at least one entity, found none"),
    ],
)  # fmt: skip
def test_vocabularies_that_do_not_go_together_are_named(
    entities: str, relations: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        SynthCorpus(SynthSettings(**vocabularies(tmp_path, entities, relations)))


def test_a_type_with_one_entity_has_no_fact_about_itself(tmp_path: Path) -> None:
    flags = vocabularies(tmp_path, PEOPLE + PLACES, "person, person | {0} met {1}\n")
    for people, fit in ((1, 0), (2, 1)):
        kept = "".join(PEOPLE.splitlines(keepends=True)[:people]) + PLACES
        (tmp_path / "entities.txt").write_text(kept)
        with pytest.raises(ValueError, match=f"num_facts: expected at most {fit}, "):
            SynthCorpus(SynthSettings(**{**flags, "num_entities": people + 2, "num_facts": 9}))


def test_the_page_shows_the_demos_settings_and_lines_of_the_shipped_vocabularies() -> None:
    (settings,) = re.findall(r"```yaml\n(synth:.*?)```", PAGE, re.S)
    demo = yaml.safe_load((ROOT / "configs" / "synth_demo.yaml").read_text())["data"]["init_args"]
    assert yaml.safe_load(settings)["synth"] == demo["synth"]
    blocks = re.findall(r"```text\n(.*?)```", PAGE, re.S)
    for block, name in zip(blocks, ("entities.txt", "readable_relations.txt"), strict=True):
        assert set(block.splitlines()) <= set(vocabulary_text(None, name).splitlines())
    assert f"{len(read_entities())} of them" in PAGE
