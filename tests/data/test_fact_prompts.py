"""Prompts from files and from the queries of all data sets."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftrace.data import (
    FactCorpus,
    FactPrompt,
    FtraceSynth,
    FtraceTrex,
    SynthSettings,
    prompts_of_queries,
    read_prompts,
    read_queries,
    tokenize_prompt,
)
from helpers.awkward_prompts import PROMPTS, tokenizer_of

OWN = {"prompt": "Oslo is in", "subject": "Oslo", "answer": "Norway"}


def write(file: Path, rows: list[Any]) -> Path:
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


@pytest.mark.parametrize("form", ["json", "jsonl", "parquet"])
def test_records_of_known_1000(form: str, tmp_path: Path) -> None:
    records = [
        {
            "known_id": number,
            "subject": awkward.subject,
            "attribute": awkward.answer,
            "template": awkward.prompt.replace(awkward.subject, "{}"),
            "prediction": f" {awkward.answer}. It is",
            "prompt": awkward.prompt,
            "relation_id": "P30",
        }
        for number, awkward in enumerate(PROMPTS)
    ]
    prompts = read_prompts(write(tmp_path / f"known.{form}", records))
    assert [prompt.name for prompt in prompts] == [f"known-{number}" for number in range(len(PROMPTS))]
    assert [(one.prompt, one.subject, one.answers[0]) for one in prompts] == PROMPTS
    assert prompts[3] == FactPrompt("known-3", *PROMPTS[3][:2], (PROMPTS[3].answer,))


def test_a_users_own(tmp_path: Path) -> None:
    everything = {
        **OWN, "answers": ["Norge", "Norway"], "foil": "Sweden", "subject_start": 0, "id": "a", "fact": "in", "note": 1,
    }  # fmt: skip
    rows = [everything, OWN, {**OWN, "answers": "Norge", "id": 7}, {**without(OWN, "answer"), "answers": ["Norge"]}]
    rows += [{**OWN, "attribute": "Sweden", "foil": None, "fact": 5}]
    prompts = read_prompts(write(tmp_path / "own.jsonl", rows))
    assert prompts[0] == FactPrompt("a", "Oslo is in", "Oslo", ("Norway", "Norge"), "Sweden", 0, "in")
    assert prompts[1] == FactPrompt("prompt-2", "Oslo is in", "Oslo", ("Norway",))
    assert [prompt.answers for prompt in prompts[2:]] == [("Norway", "Norge"), ("Norge",), ("Norway",)]
    assert [prompt.name for prompt in prompts[2:]] == ["prompt-7", "prompt-4", "prompt-5"]
    assert (prompts[4].foil, prompts[4].fact) == (None, "5")


def test_names_are_unique_and_may_name_files(tmp_path: Path) -> None:
    ids = ["a/b", "a b", "A-B", "../../etc", "prompt-7", "Łódź", None, "北京", "x" * 300, "x" * 301, "..", "a\0b", 3]
    rows = [OWN if name is None else {**OWN, "id": name} for name in ids]
    names = [prompt.name for prompt in read_prompts(write(tmp_path / "own.jsonl", rows))]
    assert names[:7] == ["a-b", "a-b-2", "A-B-3", "etc", "prompt-7", "d", "prompt-7-2"]
    assert len({name.casefold() for name in names}) == len(ids)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,90}", name)
        (tmp_path / name).write_text("")


def test_what_a_prompt_says_does_not_keep_the_others_from_being_read(tmp_path: Path) -> None:
    rows = [
        {**OWN, "answer": ""},
        {**OWN, "subject": ""},
        {**OWN, "subject": "Bergen"},
        {**OWN, "prompt": ""},
        {**OWN, "answer": None},
        {**OWN, "subject": None},
        {**OWN, "answers": []},
        {**without(OWN, "answer"), "answers": []},
        OWN,
    ]
    prompts = read_prompts(write(tmp_path / "own.jsonl", rows))
    assert len(prompts) == len(rows)
    assert [prompt.answers for prompt in prompts[4:]] == [("",), ("Norway",), ("Norway",), ("",), ("Norway",)]
    assert prompts[5].subject == ""


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([OWN, without(OWN, "prompt")], r"row 2: no field 'prompt', found the fields \['answer', 'subject'\]"),
        ([{**without(OWN, "subject"), "subjects": "x"}], r"row 1: no field 'subject', .*; nearest: \['subjects'\]"),
        (
            [{**without(OWN, "answer"), "anwser": "x"}],
            r'row 1: expected the field "answer" \(or "attribute"\), .*nearest: \[\'anwser\'\]',
        ),
        ([{**OWN, "subject_strat": 3}], "row 1: unknown field 'subject_strat'. Write it 'subject_start', or leave it"),
        ([{**OWN, "foils": "x"}], "unknown field 'foils'. Write it 'foil'"),
        ([{**OWN, "prompt": 3.5}], "field 'prompt': expected text or a whole number, found 3.5"),
        ([{**OWN, "subject": ["Oslo"]}], "field 'subject': expected text"),
        ([{**OWN, "answer": True}], "field 'answer': expected text or a whole number, found True"),
        ([{**OWN, "answers": [1.5]}], "field 'answers': expected text or a list of texts, found"),
        ([{**OWN, "answers": {}}], "field 'answers': expected text or a list of texts"),
        ([{**OWN, "foil": [1]}], r"field 'foil': expected text or a whole number, found \[1\]"),
        ([{**OWN, "subject_start": "3"}], "field 'subject_start': expected the place of .* found '3'"),
        ([{**OWN, "subject_start": -1}], "field 'subject_start'.* found -1"),
        ([{**OWN, "subject_start": True}], "field 'subject_start'.* found True"),
        ([{**OWN, "fact": []}], "field 'fact': expected text"),
        ([{**OWN, "id": 1.5}], "field 'id': expected text or a whole number, found 1.5"),
        ([{**OWN, "id": 1}, {**OWN, "id": "1"}], "row 2: field 'id': expected an id of its own, not '1', that row 1"),
        ([], "expected at least one prompt, found none"),
        (["Oslo"], "row 1: expected a JSON object"),
    ],
    ids=str,
)  # fmt: skip
def test_malformed_files(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_prompts(write(tmp_path / "own.jsonl", rows))


def test_files_that_are_not_there_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.jsonl: can't be read"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"own.csv: expected a file that ends in .jsonl"):
        read_prompts(tmp_path / "own.csv")


@pytest.mark.parametrize("facts_a_row", [1, 2])
def test_queries_of_synth(facts_a_row: int, tmp_path: Path) -> None:
    settings = SynthSettings(
        num_entities=30, num_relations=12, num_facts=90, num_test_utterances=60, num_facts_per_utterance=facts_a_row
    )
    data = FtraceSynth(settings, str(tmp_path), architecture="decoder-only")
    with pytest.raises(RuntimeError, match="setup"):
        prompts_of_queries(data)
    data.prepare_data()
    data.setup()
    prompts = prompts_of_queries(data)
    assert [prompt.query_id for prompt in prompts] == data.query_rows["query_id"][:]
    assert [prompt.name for prompt in prompts[:2]] == ["query-0", "query-1"]
    refused = 0
    for prompt, row in zip(prompts, data.query_rows, strict=True):
        assert (prompt.prompt, prompt.targets) == (row["inputs_pretokenized"], row["targets_pretokenized"])
        assert row["targets_pretokenized"] == f"<extra_id_0> {prompt.answers[0]}"
        assert set(prompt.answers) == set(row["answers"])
        assert prompt.fact == row["fact"]
        assert {word for word in re.findall(r"\w+-\w+", prompt.prompt) if "entity" in word} == {prompt.subject}
        try:
            tokens = tokenize_prompt(prompt, data.tokenizer, as_trained=True)
            assert data.tokenizer.decode(tokens.input_ids[slice(*tokens.subject)]) == prompt.subject
        except ValueError as error:
            assert "2 times" in str(error)  # noqa: PT017 - a template may name an entity twice
            refused += 1
    assert refused < 10


def test_queries_of_trex_also_from_folders_of_before(tmp_path: Path) -> None:
    data = FtraceTrex("sample", str(tmp_path))
    data.prepare_data()
    data.setup()
    prompts = prompts_of_queries(data)
    source = Path(__file__).parents[2] / "ftrace" / "data" / "samples" / "trex" / "queries.jsonl"
    known = {row["uuid"]: row for row in map(json.loads, source.read_text().splitlines())}
    for prompt, uuid in zip(prompts, data.query_rows["uuid"], strict=True):
        row = known[uuid]
        surfaces = {row["obj_surface"], row["sub_surface"]}
        assert surfaces == {prompt.subject, prompt.answers[0]}
        assert tokenize_prompt(prompt, data.tokenizer, decoder_start=0, as_trained=True).subject

    file = data.data_path / "queries.parquet"
    pq.write_table(pq.read_table(file).drop_columns("subject"), file)
    manifest = json.loads((data.data_path / "manifest.json").read_text())
    del manifest["digest"], manifest["files"]
    (data.data_path / "manifest.json").write_text(json.dumps({**manifest, "version": 1}))
    before = FtraceTrex("sample", str(tmp_path))
    before.prepare_data()
    before.setup()
    assert "subject" not in before.query_rows.column_names
    assert prompts_of_queries(before) == prompts


@pytest.mark.parametrize(
    ("text", "targets", "of_object", "of_subject", "subject"),
    [
        ("Oslo lies in <extra_id_0> .", "Norway", "Norway", "Oslo", "Oslo"),
        ("Oslo lies in <extra_id_0> .", "norway", "Norway", "Oslo", "Oslo"),
        ("OSLO lies in <extra_id_0> .", "Norway", "Norway", "Oslo", "OSLO"),
        ("<extra_id_0> lies in Norway .", "Oslo", "Norway", "Oslo", "Norway"),
        ("Norway 's Oslo lies in <extra_id_0> .", "Norway", "Norway", "Oslo", "Oslo"),
        ("New York lies in <extra_id_0> .", "New York", "New York", "New York", "New York"),
        ("Oslo lies in <extra_id_0> .", "the North", "Norway", "Oslo", "Oslo"),
        ("Oslo in Norway lies in <extra_id_0> .", "the North", "Norway", "Oslo", None),
        ("It lies in <extra_id_0> .", "Norway", "Norway", "Oslo", None),
        ("Oslo lies in <extra_id_0> .", "Norway", "Norway", "", None),
    ],
)
def test_the_subject_of_a_query_of_trex_is_what_is_not_masked(
    text: str, targets: str, of_object: str, of_subject: str, subject: str | None, tmp_path: Path
) -> None:
    ids = {"predicate_id": "P17", "obj_uri": "Q1", "sub_uri": "Q2", "uuid": "u"}
    query = {
        **ids, "inputs_pretokenized": text, "targets_pretokenized": f"<extra_id_0> {targets}",
        "obj_surface": of_object, "sub_surface": of_subject,
    }  # fmt: skip
    row = {
        "inputs_pretokenized": "<extra_id_0> it is .", "targets_pretokenized": "<extra_id_0> So", "page_uri": "Q1",
        "facts": "P17,Q1,Q2", "id": 0,
    }  # fmt: skip
    write(tmp_path / "abstracts.jsonl", [row])
    write(tmp_path / "queries.jsonl", [query])
    data = FtraceTrex(str(tmp_path), str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of answers that are no surface
        data.prepare_data()
    data.setup()
    assert [prompt.subject or None for prompt in prompts_of_queries(data)] == [subject]


TRAIN = [{"inputs": "Oslo lies in <extra_id_0>", "targets": "<extra_id_0> Norway"}]


def corpus(tmp_path: Path, queries: list[Any]) -> FactCorpus:
    tmp_path.mkdir(exist_ok=True)
    files = write(tmp_path / "train.jsonl", TRAIN), write(tmp_path / "queries.jsonl", queries)
    data = FactCorpus(*map(str, files), data_dir=str(tmp_path / "cache"))
    data.prepare_data()
    data.setup()
    return data


def test_whole_numbers_are_text(tmp_path: Path) -> None:
    row = {"prompt": 1814, "subject": 18, "answer": 7, "answers": [8, "nine"], "foil": 10, "fact": 3}
    row["subject_start"] = 0
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    (found,) = read_prompts(tmp_path / "own.jsonl")
    assert found == FactPrompt("prompt-1", "1814", "18", ("7", "8", "nine"), "10", 0, "3")


def test_queries_of_a_corpus(tmp_path: Path) -> None:
    query = {"inputs": "Where is Oslo ? <extra_id_0>", "targets": "<extra_id_0> Norway", "fact": "in"}
    queries = [{**query, "subject": "Oslo", "answers": ["Norge", "Norway"]}, {**query, "answers": ["Norge"]}]
    data = corpus(tmp_path, queries)
    told, untold = prompts_of_queries(data)
    assert told == FactPrompt(
        "query-0", query["inputs"], "Oslo", ("Norway", "Norge"), None, None, "in", 0, query["targets"]
    )
    assert (untold.subject, untold.answers) == ("", ("Norway", "Norge"))
    with pytest.raises(ValueError, match=r"no subject: .* Give them as subject"):
        tokenize_prompt(untold, data.tokenizer, as_trained=True, decoder_start=0)
    assert [row["subject"] for row in read_queries(tmp_path / "queries.jsonl")] == ["Oslo", None]
    with pytest.raises(ValueError, match=r"row 1: field 'subject': expected text or a whole number, found 4\.5"):
        corpus(tmp_path / "wrong", [{**query, "subject": 4.5}])


def test_a_corpus_without_subjects_is_written_as_before(tmp_path: Path) -> None:
    data = corpus(tmp_path, [{"inputs": "Oslo lies in", "targets": "Norway"}])
    assert data.query_rows.column_names == [
        "query_id", "inputs_pretokenized", "targets_pretokenized", "name", "fact", "answers", "proponent_ids",
    ]  # fmt: skip
    assert prompts_of_queries(data)[0].subject == ""


def test_the_example_in_the_docs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (lines,) = re.findall(r"```json\n(.*?)```", page, re.S)
    (tmp_path / "own.jsonl").write_text(lines)
    prompts = read_prompts(tmp_path / "own.jsonl")
    assert [prompt.name for prompt in prompts] == ["prompt-1", "trade", "prompt-3"]
    for prompt in prompts:
        found = tokenize_prompt(prompt, tokenizer_of("gpt-2"))
        assert "".join(found.tokens[slice(*found.subject)]) == prompt.subject
