"""`ftrace report`: what it takes, where it writes, what it says, and that nothing is replaced or left behind."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftrace.cli import main
from ftrace.commands import report
from ftrace.commands.report_queries import choose_queries
from ftrace.scores import EXAMPLE_ID, QUERY_ID, ScoreStore, Texts
from ftrace.views import StoreSource
from helpers.made_run import data_of, make_run, train, write_scores
from helpers.made_store import SCORES, make_ledger, make_store
from helpers.read_report import chunks_of

Report = Callable[..., dict[str, Any]]


@pytest.fixture
def reported(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """A function that runs the command in an empty folder and returns the chunks of what it wrote."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*arguments: object) -> dict[str, Any]:
        assert main(["report", *map(str, arguments)]) == 0
        (path,) = re.findall(
            r"^The report is (.*?)(?:, in place of an earlier one)?$", capsys.readouterr().out, flags=re.MULTILINE
        )
        return chunks_of(Path(path))

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    data = data_of(folder / "data")
    run = make_run(folder / "my run" / "version_3", folder / "data")
    train(run, data)
    examples, queries = (
        Texts.of(table, key) for table, key in zip(data.describe(), (EXAMPLE_ID, QUERY_ID), strict=True)
    )
    write_scores(run / "online", data, {"dot": 0.1, "learning": 0.1}).put_texts(examples, queries)
    write_scores(run / "bm25", data, {"bm25": 0.5}, seed=1)
    return run


def result_line(name: str, **fields: Any) -> dict[str, Any]:
    """A line of TrackStar's released results."""
    return {
        "example_id": name, "query_set": "trex", "inputs_plaintext": f"Where is {name}?",
        "targets_plaintext": "<extra_id_0> There", "proponents": ["It is there", "Elsewhere"],
        "proponent_ids": ["c4-1", "c4-2"], "proponent_scores": [2.5, 1.0], "proponent_correct": [True, False],
        "opponents": ["Nowhere"], "opponent_ids": ["c4-3"], "opponent_scores": [-1.5], **fields,
    }  # fmt: skip


# What it takes


def test_stores_side_by_side_beside_the_first(reported: Report, tmp_path: Path) -> None:
    make_store(tmp_path / "online", {"learning": SCORES, "update": -SCORES}, ledger=make_ledger())
    make_store(tmp_path / "bm25", {"bm25": SCORES})
    chunks = reported(tmp_path / "online", f"{tmp_path}/online:update", tmp_path / "bm25", "-k2", "--opponents=1")
    assert [method["title"] for method in chunks["head"]["methods"]] == ["online learning", "online update", "bm25"]
    assert chunks["head"]["title"] == f"{tmp_path.name}/online, bm25"
    assert [len(lists["proponents"]) for lists in chunks["query-0"]["lists"]] == [2, 2, 2]
    assert (tmp_path / "report.html").is_file()
    assert not list(Path.cwd().iterdir())


def test_a_run_stands_for_all_its_stores_and_what_its_model_says(reported: Report, trained: Path) -> None:
    for arguments in ([trained], [trained.parent], ["--run", trained]):
        chunks = reported(*arguments)
        head = chunks["head"]
        assert [method["title"] for method in head["methods"]] == ["online learning", "bm25"]
        assert head["title"] == "my run/version_3"
        assert None not in head["queries"]["said"]
        assert (trained / "report.html").is_file()
    assert not list(Path.cwd().iterdir())
    one = reported("bm25", "--run", trained, "--out", "one.html")
    assert [method["title"] for method in one["head"]["methods"]] == ["bm25"]
    again = (trained / "report.html").read_bytes()
    reported(trained)
    assert (trained / "report.html").read_bytes() == again


def test_a_run_that_cant_be_asked_is_reported_and_that_is_said(reported: Report, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tmp_path / "data")
    make_store(run / "online")
    head = reported(run)["head"]
    assert any("could not be asked" in limit for limit in head["limits"])
    assert head["queries"]["said"] == [None, None]


def test_an_example_that_a_list_has_several_times_counts_once(reported: Report, tmp_path: Path) -> None:
    line = result_line("a", proponent_ids=["17", 17], proponent_scores=[1.0, 2.5])
    (tmp_path / "twice.jsonl").write_text(json.dumps(line) + "\n")
    chunks = reported(tmp_path / "twice.jsonl")
    assert [example["id"] for example in chunks["query-0"]["examples"]].count("17") == 1
    assert chunks["query-0"]["lists"][0]["proponents"] == [0]
    assert chunks["query-0"]["lists"][0]["more_proponents_like_last"] == 0
    assert chunks["query-0"]["examples"][0]["places"][0]["score"] == 2.5
    assert chunks["example-0"]["examples"][0]["methods"][0]["most_helped"] == [[0, 2.5]]
    assert "1 entry left out" in chunks["head"]["methods"][0]["doubts"][0]


@pytest.mark.parametrize("odd", [[["There", 0.5]], [{"text": "There"}], 5, [None], []])
def test_what_is_no_text_is_not_what_a_model_said(reported: Report, tmp_path: Path, odd: object) -> None:
    (tmp_path / "odd.jsonl").write_text(json.dumps(result_line("a", **{"8b_generations": odd})) + "\n")
    assert reported(tmp_path / "odd.jsonl")["query-0"]["said"] is None


@pytest.mark.parametrize("fields", [{"example_id": 2**64}, {"proponent_ids": [3, -(2**64)]}])
def test_ids_that_exceed_64_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, Any]) -> None:
    (tmp_path / "large.jsonl").write_text(json.dumps({**result_line("a"), **fields}) + "\n")
    assert main(["report", str(tmp_path / "large.jsonl")]) == 2
    assert "expected ids from -2^63 to 2^63 - 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ours.jsonl", "ours.jsonl.gz"])
def test_released_results(reported: Report, tmp_path: Path, name: str) -> None:
    lines = [
        result_line("Oslo", fact_id="f1", relation="P17", c4_frequency_bucket=3, has_trex_sentence=True,
                    **{"8b_generations": ["Nowhere", "There"], "8b_confidence": 0.5}),
        result_line("Rome", fact_id="f2", relation="P30", c4_frequency_bucket=3, has_trex_sentence=False,
                    **{"8b_generations": ["there."]}),
    ]  # fmt: skip
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    chunks = reported(tmp_path / name)
    queries = chunks["head"]["queries"]
    assert queries["names"] == ["Oslo", "Rome"]
    assert queries["said"] == ["Nowhere", "there."]
    assert queries["said_right"] == [False, True]
    assert queries["facets"]["relation"] == ["P17", "P30"]
    first = chunks["query-0"]
    assert (first["prompt"], first["answer"]) == ("Where is Oslo?", "There")
    assert {"fact_id", "relation", "8b_confidence", "query_set"} <= {name for name, _ in first["properties"]}
    assert [example["name"] for example in first["examples"]] == ["c4-1", "c4-2", "c4-3"]
    assert [example["states_fact"] for example in first["examples"]] == [True, False, None]
    assert first["lists"][0]["opponents"] == [2]


def test_texts_are_joined(reported: Report, tmp_path: Path) -> None:
    make_store(tmp_path / "s", examples=None, queries=None)
    (tmp_path / "texts.jsonl").write_text(json.dumps({"example_id": 3, "text": "Oslo!"}) + "\n")
    chunk = reported(tmp_path / "s", "--texts", tmp_path / "texts.jsonl")["query-0"]
    assert {example["id"]: example["text"] for example in chunk["examples"]}["3"] == "Oslo!"


# Which queries


def test_queries_by_id_by_number_and_in_their_order(reported: Report, tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    assert reported(tmp_path / "s", "--queries", "17", "0")["head"]["queries"]["ids"] == ["0", "17"]
    named = reported(tmp_path / "s", "--queries", "#17")["head"]
    assert named["queries"]["ids"] == ["17"]
    assert "1 of 2 queries were chosen." in named["limits"]
    assert len(reported(tmp_path / "s", "--queries", "2")["head"]["queries"]["ids"]) == 2


def test_too_many_queries_are_drawn_evenly_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ScoreStore.write(tmp_path / "s", np.arange(2), np.arange(100), {"dot": np.ones((2, 100))})
    chosen, limits = choose_queries([StoreSource(store)], ["4"])
    assert chosen == [0, 25, 50, 75]
    assert limits == ["4 of 100 queries are here, drawn evenly in order; --queries names others."]
    monkeypatch.setattr("ftrace.commands.report_queries.MOST", 50)
    chosen, limits = choose_queries([StoreSource(store)], None)
    assert chosen == list(range(0, 100, 2))
    assert limits


# Redaction


def test_a_redacted_report_has_none_of_the_texts(reported: Report, tmp_path: Path) -> None:
    texts = json.dumps(reported(make_store(tmp_path / "s", ledger=make_ledger()).path))
    assert "Oslo" in texts
    chunks = reported(tmp_path / "s", "--redact")
    for word in ("Oslo", "Stockholm", "fjord", "snows", "Christiania"):
        assert word not in json.dumps(chunks)
        assert word not in (tmp_path / "report.html").read_text()
    assert chunks["query-0"]["lists"][0]["proponents"]
    assert "fact" not in chunks["head"]["queries"]["facets"]


def test_a_redacted_report_names_no_folders(reported: Report, trained: Path, tmp_path: Path) -> None:
    """Neither in commands nor in the reason why a model could not be asked."""
    unreadable = make_run(tmp_path / "anna" / "a run", tmp_path / "nowhere")
    make_store(unreadable / "online")
    for run in (trained, unreadable):
        out = tmp_path / "report.html"
        assert str(run.parent) in json.dumps(reported(run, "--tokens=0", "--out", out))
        chunks = reported(run, "--redact", "--out", out)
        assert chunks["head"]["run"]["folder"] == run.name
        assert str(run.parent) not in json.dumps(chunks)
        assert str(tmp_path) not in json.dumps(chunks)


# Where it writes, and what it says


def test_a_name_without_ending_is_a_folder(reported: Report, tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    folder = reported(tmp_path / "s", "--out", tmp_path / "a #1 ü")
    assert (tmp_path / "a #1 ü" / "index.html").is_file()
    assert folder == reported(tmp_path / "s", "--out", tmp_path / "b.html")


def test_it_says_how_large_it_will_be_and_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_store(tmp_path / "s")
    assert main(["report", str(tmp_path / "s"), "--out", str(tmp_path / "a b.html")]) == 0
    out, error = capsys.readouterr()
    assert re.search(r"2 queries and 5 examples: about .* MB, as one file", error)
    assert out.splitlines() == [
        f"The report is {tmp_path}/a b.html",
        f"Open it by double-click, or as file://{tmp_path}/a%20b.html",
    ]


def test_what_is_too_large_for_a_file_is_a_folder(
    reported: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(tmp_path / "s")
    for module in ("ftrace.commands.report", "ftrace.report.explorer.page.writing"):
        monkeypatch.setattr(f"{module}.MAX_FILE_BYTES", 1000)
    assert reported(tmp_path / "s")["head"]
    assert (tmp_path / "report" / "index.html").is_file()
    assert main(["report", str(tmp_path / "s"), "--out", "x.html"]) == 2
    assert "expected one file of up to 0.001 MB" in capsys.readouterr().err
    monkeypatch.setattr(report, "MAX_FOLDER_BYTES", 1000)
    assert main(["report", str(tmp_path / "s"), "--out", "x"]) == 2
    assert "Choose fewer queries (--queries 200)" in capsys.readouterr().err
    assert not list(Path.cwd().iterdir())


def test_a_folder_of_stores_stands_for_all_of_them_and_kinds_that_are_left_out_are_said(
    reported: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(tmp_path / "mine" / "online", {"learning": SCORES, "update": -SCORES, "dot": SCORES})
    make_store(tmp_path / "mine" / "bm25", {"bm25": SCORES})
    head = reported(tmp_path / "mine")["head"]
    assert [method["title"] for method in head["methods"]] == ["online learning", "bm25"]
    assert head["title"] == "mine/online, bm25"
    said = "online: of its kinds of scores, learning is here, and not update, dot; STORE:update would add one."
    assert said in head["limits"]
    assert main(["report", str(tmp_path / "mine")]) == 0
    assert "report.html, in place of an earlier one\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "stores: expected a score store, a run or a file of results, found none"),
        (["{}/nothing"], "expected the folder of a score store, found nothing at"),
        (["{}/s", "-k0"], "k: expected at least 1, found 0"),
        (["{}/s", "--opponents=-1"], "opponents: expected at least 0, found -1"),
        (["{}/s", "--queries", "0", "zebra"], "query: no query 'zebra' among 2"),
        (["{}/s", "--queries", "0"], "queries: expected a number from 1 to 2,000, or ids and names, found 0"),
        (["{}/s", "--queries", "9000"], "found 9,000"),
        (["{}/s", "--out", "{}/mine.html"], "expected nothing or an earlier report there"),
        (["{}/s", "--out", "{}/s"], "expected nothing or an earlier report there"),
        (["{}/s", "--out", ""], "out: expected a text that is not empty"),
        (["{}/s", "--out", "{}/mine.html/x.html"], "mine.html' is a file"),
        (["{}/s", "--figures", "{}/mine.html"], "figures: expected the name of a folder, found the file"),
        (["{}/s", "--figures", ""], "figures: expected a text that is not empty"),
        (["{}/empty", "{}/empty:dot"], "stores: expected each once"),
        (["{}/empty"], "expected scores for at least one query, found none"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_touched(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    make_store(tmp_path / "s")
    ScoreStore.write(tmp_path / "empty", np.arange(3), np.arange(0), {"dot": np.zeros((3, 0))})
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", *(argument.replace("{}", str(tmp_path)) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_report_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path / "s")
    chunks = report.Content.chunks

    def interrupted(self: Any) -> Any:
        yield next(iter(chunks(self)))
        raise KeyboardInterrupt

    monkeypatch.setattr(report.Content, "chunks", interrupted)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        main(["report", str(tmp_path / "s"), "--out", str(tmp_path / "x.html")])
    assert sorted(tmp_path.rglob("*")) == before
