"""A wrong sentence among right ones: the model believes it, and whoever has only the report finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import command_line, planted_corpus
from helpers.planted_corpus import Planted
from helpers.read_report import chunks_of

STRONGEST = 3  # it is the strongest opponent, but rounding differs between processors


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Planted]:
    """The folder in which the run was trained and the report written."""
    folder = tmp_path_factory.mktemp("planted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        planted = planted_corpus.planted_run(folder)
        assert command_line.code("report", "runs/planted", "--out=report.html") == 0
    return folder, planted


@pytest.fixture(scope="module")
def chunks(made: tuple[Path, Planted]) -> dict[str, dict[str, Any]]:
    return chunks_of(made[0] / "report.html")


def test_the_list_shows_which_query_is_answered_wrongly(
    made: tuple[Path, Planted], chunks: dict[str, dict[str, Any]]
) -> None:
    planted, queries = made[1], chunks["head"]["queries"]
    place = queries["ids"].index(str(planted.query_id))
    assert (queries["answers"][place], queries["said"][place]) == (planted.right, planted.wrong)
    wrong = [other for other, right in enumerate(queries["said_right"]) if not right]
    assert place in wrong
    assert len(wrong) <= 4  # of 24: not many to look at
    assert queries["last_losses"][place] == max(queries["last_losses"])


def test_the_planted_sentence_is_among_the_strongest_opponents(
    made: tuple[Path, Planted], chunks: dict[str, dict[str, Any]]
) -> None:
    planted, head = made[1], chunks["head"]
    query = chunks[f"query-{head['queries']['ids'].index(str(planted.query_id))}"]
    method = [method["title"] for method in head["methods"]].index("online learning")
    opponents = [query["examples"][place] for place in query["lists"][method]["opponents"][:STRONGEST]]
    (found,) = [example for example in opponents if example["id"] == str(planted.example_id)]
    assert found["text"].endswith(planted.wrong)
    assert found["answer"] == planted.wrong
    assert found["states_fact"] is False
    assert found["places"][method]["rank_from_below"] <= STRONGEST
    assert found["places"][method]["score"] < 0
    proponents = [query["examples"][place] for place in query["lists"][method]["proponents"][:STRONGEST]]
    assert any(example["states_fact"] for example in proponents)


def test_the_terminal_shows_it_too(
    made: tuple[Path, Planted], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, planted = made
    monkeypatch.chdir(folder)
    assert command_line.code("show", "runs/planted", "--query", str(planted.query_id)) == 0
    said = capsys.readouterr().out
    _, opponents = said.split("opponents: ")
    assert any(f" {planted.wrong}" in line for line in opponents.splitlines()[1 : 2 + STRONGEST])


def test_the_report_says_nothing_of_where_it_was_made(
    made: tuple[Path, Planted], chunks: dict[str, dict[str, Any]]
) -> None:
    assert str(made[0]) not in str(chunks)
