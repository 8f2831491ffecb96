"""FTRACE-TREX: who states which fact, by a plain definition; what is left out is counted; what is wrong is named."""

from __future__ import annotations

import gzip
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftrace.data import FtraceTrex, fill_in, make_collator
from ftrace.data.row_files import read_rows
from ftrace.data.trex_sources import open_trex
from helpers import script

SAMPLE = Path(__file__).parents[2] / "ftrace" / "data" / "samples" / "trex"


def row(text: str, answer: str, facts: str, identifier: Any, page: str = "Q1") -> dict[str, Any]:
    return {
        "inputs_pretokenized": text, "targets_pretokenized": f"<extra_id_0> {answer}", "page_uri": page,
        "masked_uri": "Q2", "masked_type": "object", "facts": facts, "id": identifier, "example_uris": "Q1-0-Q2-Q3-0",
    }  # fmt: skip


def query(predicate: str = "P17", of: str = "Q1", subject: str = "Q2", **changes: Any) -> dict[str, Any]:
    return {
        "inputs_pretokenized": "Oslo is located in <extra_id_0> .", "targets_pretokenized": "<extra_id_0> Norway",
        "uuid": "u", "obj_uri": of, "sub_uri": subject, "predicate_id": predicate, "obj_surface": "Norway",
        "sub_surface": "Oslo", **changes,
    }  # fmt: skip


ROWS = [
    row("Oslo is in <extra_id_0>.", "Norway", "P17,Q1,Q2", 5),
    row("<extra_id_0> is in Norway.", "Oslo", "P17,Q1,Q2;P36,Q1,Q2", 7),  # the same sentence, with one more fact
    row("Norsk makes <extra_id_0>.", "skis", "P176,Q1,Q2", "a"),
    row("<extra_id_0> is in Norway.", "Oslo", "P17,Q1,Q20", "b", page="Q9"),  # the same words of another page
    row("It rains in <extra_id_0>.", "Oslo", "", 9),
]
QUERIES = [
    query(uuid="stated"),
    query("P361", uuid="nowhere"),
    query("P36", uuid="by a variant"),
    query("P17", "Q1", "Q20", uuid="subject", inputs_pretokenized="<extra_id_0> is in Norway .",
          targets_pretokenized="<extra_id_0> oslo"),
]  # fmt: skip


def write(folder: Path, rows: list[Any] = ROWS, queries: list[Any] = QUERIES, form: str = "jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("abstracts", rows), ("queries", queries)):
        lines = "".join(json.dumps(one) + "\n" for one in content)
        if form == "jsonl":
            (folder / f"{name}.jsonl").write_text(lines)
        elif form == "json":
            (folder / f"{name}.json").write_text(json.dumps(content, indent=1))
        elif form == "jsonl.gz":
            (folder / f"{name}-0.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        else:  # as on the hub: several files in folders, all columns text
            (folder / name / "train").mkdir(parents=True)
            texts = [{key: str(value) for key, value in one.items()} for one in content]
            for part, some in enumerate((texts[:2], texts[2:])):
                pq.write_table(pa.Table.from_pylist(some), folder / name / "train" / f"000{part}.parquet")
    return folder


def ready(source: str | Path, tmp_path: Path, **settings: Any) -> FtraceTrex:
    data = FtraceTrex(str(source), str(tmp_path / "cache"), batch_size=8, **settings)
    data.prepare_data()
    data.setup()
    return data


def manifest(data: FtraceTrex) -> dict[str, Any]:
    return json.loads((data.data_path / "manifest.json").read_text())


@pytest.mark.parametrize("form", ["jsonl", "json", "jsonl.gz", "parquet"])
def test_rows_queries_and_proponents(form: str, tmp_path: Path) -> None:
    data = ready(write(tmp_path / "in", form=form), tmp_path)
    assert data.train_rows["example_id"][:] == [0, 1, 2, 3, 4]
    assert data.train_rows["name"][:] == ["5", "7", "a", "b", "9"]
    assert data.sentence_ids.tolist() == [0, 0, 1, 2, 3]
    both = ["P17,Q1,Q2", "P36,Q1,Q2"]
    assert data.train_rows["facts"][:] == [both, both, ["P176,Q1,Q2"], ["P17,Q1,Q20"], []]
    assert data.query_rows["uuid"][:] == ["stated", "by a variant", "subject"]
    assert data.query_rows["query_id"][:] == [0, 1, 2]
    assert data.query_rows["fact"][:] == ["P17,Q1,Q2", "P36,Q1,Q2", "P17,Q1,Q20"]
    assert data.query_rows["predicate"][:] == ["P17", "P36", "P17"]
    assert data.query_rows["answers"][:] == [["Norway"], ["Norway"], ["oslo", "Oslo"]]
    assert {query: ids.tolist() for query, ids in data.proponents.items()} == {0: [0, 1], 1: [0, 1], 2: [3]}


def test_the_sample_by_the_plain_definition(tmp_path: Path) -> None:
    """A proponent is any variant of a sentence of which some variant's facts hold the query's key, whole."""
    data = ready("sample", tmp_path)
    source = [one.fields for one in read_rows(SAMPLE / "abstracts.jsonl")]
    sentences = [(one["page_uri"], fill_in(one["inputs_pretokenized"], one["targets_pretokenized"])) for one in source]
    asked = [one.fields for one in read_rows(SAMPLE / "queries.jsonl")]
    expected = {}
    for one in asked:
        key = f"{one['predicate_id']},{one['obj_uri']},{one['sub_uri']}"
        stating = {sentence for sentence, row in zip(sentences, source, strict=True) if key in row["facts"].split(";")}
        expected[one["uuid"]] = [number for number, sentence in enumerate(sentences) if sentence in stating]
    found = {row["uuid"]: data.proponents[row["query_id"]].tolist() for row in data.query_rows}
    assert found == {uuid: ids for uuid, ids in expected.items() if ids}
    said = manifest(data)
    assert said["num_queries_without_proponents"] == len(asked) - len(found) == 2
    assert said["num_sentences"] == len(set(sentences)) < len(source)
    assert said["num_rows_with_facts_of_other_variants"] > 0  # as in the published data
    assert {"P17", "P176", "P36", "P361"} <= set(data.query_rows["predicate"][:])
    assert sum((SAMPLE / name).stat().st_size for name in ("abstracts.jsonl", "queries.jsonl")) < 300_000


def test_rows_of_the_sample_are_as_published() -> None:
    for one in read_rows(SAMPLE / "abstracts.jsonl"):
        assert one.fields.keys() == ROWS[0].keys()
        assert re.fullmatch(r"(P\d+,Q0\d+,Q0\d+)(;P\d+,Q0\d+,Q0\d+)*", one.fields["facts"])  # Wikidata has no Q0...
    for one in read_rows(SAMPLE / "queries.jsonl"):
        assert one.fields.keys() == QUERIES[0].keys()


def test_what_is_left_out_is_said_each_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "in", queries=[*QUERIES, query(uuid="stated")])
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
            data = ready(folder, tmp_path)
        assert "5 rows, 4 queries, 1 more left out whose fact no row states" in caplog.text
    assert manifest(data)["num_queries_with_a_repeated_uuid"] == 1
    assert manifest(data)["proponents"] == {"mean": 1.75, "median": 2.0, "most": 2}


def test_indexed_once_by_the_content_of_the_files(tmp_path: Path) -> None:
    data = ready(write(tmp_path / "a"), tmp_path)
    stamp = (data.data_path / "train.parquet").stat().st_mtime_ns
    again = ready(write(tmp_path / "b"), tmp_path)
    assert (again.data_path / "train.parquet").stat().st_mtime_ns == stamp
    assert FtraceTrex(str(write(tmp_path / "c", queries=QUERIES[:1]))).data_path.name != data.data_path.name


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", [*ROWS, row("no mask", "x", "P1,Q1,Q2", 99)])
    with pytest.raises(ValueError, match="row 6"):
        ready(folder, tmp_path)
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_was_not_finished_is_made_anew(tmp_path: Path) -> None:
    folder = write(tmp_path / "in")
    unfinished = FtraceTrex(str(folder), str(tmp_path / "cache")).data_path
    unfinished.mkdir(parents=True)
    (unfinished / "train.parquet").write_text("half")
    assert len(ready(folder, tmp_path).train_rows) == 5


@pytest.mark.parametrize("architecture", ["encoder-decoder", "decoder-only"])
def test_batches(architecture: Any, tmp_path: Path) -> None:
    data = ready("sample", tmp_path, architecture=architecture)
    batch = make_collator(data.tokenizer, architecture)([data.train_rows[3], data.train_rows[5]])
    assert batch["example_id"].tolist() == [3, 5]
    assert next(iter(data.query_dataloader()))["answer_labels"].shape[:2] == (len(data.query_rows), 1)


def test_as_many_queries_as_are_asked_for(tmp_path: Path) -> None:
    everything = ready("sample", tmp_path)
    drawn = [ready("sample", tmp_path, num_queries=7, query_seed=seed) for seed in (0, 0, 1)]
    ids = [data.query_rows["query_id"][:] for data in drawn]
    assert len(ids[0]) == 7
    assert ids[0] == sorted(ids[1]) != ids[2]
    for query_id in ids[0]:
        assert drawn[0].proponents[query_id].tolist() == everything.proponents[query_id].tolist()
    assert len(ready("sample", tmp_path, num_queries=1000).query_rows) == len(everything.query_rows)
    with pytest.raises(ValueError, match="num_queries: expected at least 1, found 0"):
        FtraceTrex("sample", num_queries=0)


def without(mapping: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key != name}


@pytest.mark.parametrize(
    ("rows", "queries", "message"),
    [
        ([*ROWS, without(ROWS[0], "facts")], QUERIES, r"abstracts.jsonl, row 6: no field 'facts', found the fields \["),
        ([{**without(ROWS[0], "facts"), "fact": ""}], QUERIES, r"row 1: no field 'facts'.*nearest: \['fact'\]"),
        ([{**ROWS[0], "page_uri": 7.5}], QUERIES, "row 1: field 'page_uri': expected text or a whole number"),
        ([{**ROWS[0], "page_uri": None}], QUERIES, "row 1: no field 'page_uri'"),
        ([row("Oslo", "x", "", 1)], QUERIES, "'inputs_pretokenized': expected a sentence with <extra_id_0> in it"),
        ([{**ROWS[0], "targets_pretokenized": "x"}], QUERIES, "'targets_pretokenized': expected <extra_id_0> and"),
        ([{**ROWS[0], "facts": "P1,Q2"}], QUERIES, "'facts': expected keys PREDICATE,OBJECT,SUBJECT joined by ;"),
        ([{**ROWS[0], "facts": "P1,Q2,Q3;"}], QUERIES, "'facts': expected keys"),
        ([{**ROWS[0], "id": 1.5}], QUERIES, "field 'id': expected text or a whole number, found 1.5"),
        ([*ROWS, ROWS[0], ROWS[2]], QUERIES, r"expected each id once, found again '5' \(.*row 6\), 'a' \(.*row 7\)"),
        ([*ROWS, ["a list"]], QUERIES, "row 6: expected a JSON object, found"),
        ([], QUERIES, "expected abstracts, found none"),
        (ROWS, [], "expected queries whose facts are stated, found 0 queries and none"),
        (ROWS, [query("P99")], "found 1 queries and none"),
        (ROWS, [without(query(), "uuid")], "queries.jsonl, row 1: no field 'uuid'"),
        (ROWS, [query(of="Q1,Q2")], "'obj_uri': expected one identifier such as Q48, found 'Q1,Q2'"),
    ],
    ids=str,
)  # fmt: skip
def test_malformed_rows_are_named(rows: list[Any], queries: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ready(write(tmp_path / "in", rows, queries), tmp_path)


def test_a_query_whose_answer_is_no_surface_keeps_it_and_is_counted(tmp_path: Path) -> None:
    others = [query(obj_surface="Sweden", uuid="v"), query(obj_surface="", uuid="w")]
    left_out = query("P99", obj_surface="Sweden", uuid="x")
    folder = write(tmp_path / "in", ROWS, [query(), *others, left_out])
    with pytest.warns(UserWarning, match="2 queries have another answer than the surface of their object"):
        data = ready(folder, tmp_path)
    assert data.query_rows["answers"] == [["Norway"]] * 3
    manifest = json.loads((data.data_path / "manifest.json").read_text())
    assert manifest["num_queries_with_an_answer_of_another_surface"] == 2


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "in")
    (folder / "abstracts.jsonl").write_text('{"id": 1}\n{"id": \n')
    with pytest.raises(ValueError, match=r"abstracts.jsonl, row 2: expected JSON, found"):
        list(read_rows(folder / "abstracts.jsonl"))
    for name in ("damaged.parquet", "damaged.jsonl.gz"):
        (tmp_path / name).write_text("damaged")
        with pytest.raises(ValueError, match=f"{name}: can't be read"):
            list(read_rows(tmp_path / name))
    (folder / "abstracts.jsonl").unlink()
    with pytest.raises(ValueError, match=r"source: expected abstracts\*.* found \['queries.jsonl'\]"):
        FtraceTrex(str(folder))
    with pytest.raises(ValueError, match="expected a file that ends in"):
        list(read_rows(tmp_path / "rows.tfrecord"))


def test_sources_that_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='source: expected "sample", a folder, or a data set on the Hugging Face hub'):
        open_trex("no/such/folder")

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"can't read 'ekinakyurek/ftrace' from the Hugging Face hub .*no network"):
        ready("ekinakyurek/ftrace", tmp_path)


def test_the_hub_is_read_as_it_lies_there(tmp_path: Path) -> None:
    """Its branch of Parquet files, from a server that answers like the hub's."""
    folder = write(tmp_path / "hub", form="parquet")
    command = [sys.executable, script("fake_hub"), str(folder), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"rows": 5, "proponents": {"0": [0, 1], "1": [0, 1], "2": [3]}}
