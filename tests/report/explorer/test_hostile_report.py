"""A report of a store that tries everything: texts come back as they were, and none stands outside of a chunk."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftrace.report.explorer.page.page import page
from ftrace.scores import ScoreStore
from helpers import command_line, hostile_store
from helpers.hostile_store import AXIS, FACETS, HOST, IDS, KIND, MARK, NAMES, QUERY_IDS, TEXTS
from helpers.read_report import chunks_of, queries_of, without_chunks

FOLDER = f"<img src=x onerror={MARK}> $(touch {MARK}) '"
LONGEST = 4000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScoreStore:
    return hostile_store.hostile_store(tmp_path_factory.mktemp("hostile") / FOLDER)


@pytest.fixture(scope="module", params=["report.html", "report"])
def written(request: pytest.FixtureRequest, store: ScoreStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of both kinds of scores, as one file and as a folder."""
    out = tmp_path_factory.mktemp("reports # of ü") / request.param
    assert command_line.code("report", store.path, f"{store.path}:{KIND}", f"--out={out}") == 0
    return out if out.is_file() else out / "index.html"


def test_nothing_stands_outside_of_the_chunks(written: Path) -> None:
    """The page is the one of any other report but for its title, which the folder's name is in."""
    rest = without_chunks(written)
    title = chunks_of(written)["head"]["title"]
    assert MARK in title  # of the folder
    assert rest == "".join(page(title, in_one_file=written.name != "index.html"))
    assert f"<img src=x onerror={MARK}" not in rest
    assert HOST not in rest
    for text in TEXTS.values():
        assert len(text) < 20 or text not in rest


def test_texts_come_back_as_they_were(written: Path, store: ScoreStore) -> None:
    assert store.examples is not None
    stored = {str(known): row["text"] for known, row in
              zip(store.example_ids, store.examples.rows(store.example_ids), strict=True) if row}  # fmt: skip
    assert len(stored) == len(TEXTS)
    pages = [example for name, chunk in chunks_of(written).items() if name.startswith("example-")
             for example in chunk["examples"]]  # fmt: skip
    assert {example["id"] for example in pages} == stored.keys()
    for example in pages:
        text = stored[example["id"]]
        assert example["text"] == text[:LONGEST]
        assert example["cut"] == max(0, len(text) - LONGEST)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what the manifest says against the scores
def test_examples_of_queries_come_back_too(written: Path, store: ScoreStore) -> None:
    queries = queries_of(written)
    assert queries.keys() == set(map(str, QUERY_IDS))
    assert store.queries is not None
    rows = store.queries.rows(QUERY_IDS)
    for query, row in zip(QUERY_IDS, rows, strict=True):
        assert row is not None
        shown = queries[str(query)]
        assert shown["prompt"] == row["text"][:LONGEST]
        ids, _ = store.top(query, 10, "learning")
        strongest = [shown["examples"][place]["id"] for place in shown["lists"][0]["proponents"]]
        scored = list(map(str, ids.tolist()))
        assert strongest[: len(scored)] == scored or query == QUERY_IDS[3]  # whose scores are not known


def test_ids_at_the_ends_of_int64_and_names_stay_apart(written: Path) -> None:
    pages = {example["id"]: example["name"] for name, chunk in chunks_of(written).items() if name.startswith("example-")
             for example in chunk["examples"]}  # fmt: skip
    assert set(map(str, IDS)) <= pages.keys()
    assert {name for name in pages.values() if name is not None} >= set(NAMES) - {"0"}  # "0" is the name of no. 0


def test_names_of_objects_are_names_of_facets_and_axes(written: Path) -> None:
    head = chunks_of(written)["head"]
    assert set(FACETS) <= head["queries"]["facets"].keys()
    assert all(set(head["queries"]["facets"][facet]) == set(NAMES[:2]) for facet in FACETS)
    assert [list(method["axes"]) for method in head["methods"]] == [[AXIS], []]
    assert head["methods"][1]["kind"] == KIND


def test_the_terminal_gets_no_control_characters(
    store: ScoreStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command_line.code("report", store.path, "--out=r.html") == 0
    assert command_line.code("show", store.path, "--query", "0") == 0
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert not {"\x1b", "\x00", "\x07", "\u202e", "\u2066", "\x9b", "\u2028", "\r"} & set(text)
    assert [file.name for file in tmp_path.iterdir()] == ["r.html"]


def test_a_redacted_report_has_no_text(store: ScoreStore, tmp_path: Path) -> None:
    file = tmp_path / "r.html"
    assert command_line.code("report", store.path, "--redact", f"--out={file}") == 0
    chunks = chunks_of(file)
    head = chunks.pop("head")
    assert head["is_redacted"]
    assert not head["queries"]["facets"]
    shown = str([head["queries"], *chunks.values()])  # the rest of the head has settings and what speaks against them
    long = [text for text in TEXTS.values() if len(text.strip()) > 20]
    assert not [text for text in (HOST, *long) if text in shown or repr(text)[1:-1] in shown]


def test_equal_input_gives_an_equal_file(store: ScoreStore, tmp_path: Path) -> None:
    files = [tmp_path / "a" / "report.html", tmp_path / "b" / "report.html"]
    for file in files:
        file.parent.mkdir()
        assert command_line.code("report", store.path, f"--out={file}") == 0
    assert files[0].read_bytes() == files[1].read_bytes()
