"""`ftrace learned-when` over a run made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ftrace.cli import main
from ftrace.scores import AnswerRecord, ScoreStore
from helpers.made_run import data_of, make_run, write_scores


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    data = data_of(folder / "data")
    made = make_run(folder / "run", folder / "data", [])
    for name, noise in (("tracin", 2.0), ("embed", 0.4)):
        write_scores(made / name, data, {"dot": noise, "cosine": noise / 2})
    found = write_scores(made / "plain", data, {"update": 0.2})
    learned = np.arange(4)[:, None] >= np.array([1, 1, 1, 1, 3, 3, 3, 9])
    answers = AnswerRecord([0, 5, 10, 15], np.arange(8), learned)
    ids = np.arange(len(data.train_rows))
    ScoreStore.write(made / "online", ids, np.arange(8), {"update": found.matrix("update")}, answers=answers)
    return made


def test_any_number_of_stores_and_kinds(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores = [str(run / name) for name in ("online", "tracin", "embed")]
    assert main(["learned-when", *stores, "--bins=2"]) == 0
    bins = json.loads((run / "learned_when.json").read_text())
    assert [(one["first"], one["last"], one["num_queries"]) for one in bins] == [(5, 5, 4), (15, 15, 3), (-1, -1, 1)]
    assert list(bins[0]["methods"]) == ["online update", "tracin dot", "tracin cosine", "embed dot", "embed cosine"]
    early = bins[0]["methods"]["tracin dot"]["precision"]
    assert early["low"] <= early["mean"] <= early["high"] < bins[0]["methods"]["online update"]["precision"]["low"]
    assert (run / "learned_when.png").read_bytes().startswith(b"\x89PNG")
    assert "step 5" in capsys.readouterr().out


def test_some_kinds(run: Path, tmp_path: Path) -> None:
    stores = [str(run / name) for name in ("online", "tracin")]
    assert main(["learned-when", *stores, "--kinds", "update", "dot", f"--output={tmp_path / 'a.json'}"]) == 0
    assert list(json.loads((tmp_path / "a.json").read_text())[0]["methods"]) == ["online update", "tracin dot"]


def test_bad_input_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    online = str(run / "online")
    for arguments, message in (
        ([online, online], "expected each score store once"),
        ([str(run / "tracin")], "expected a store that records when queries were right"),
        ([online, "--kinds", "trak"], "kinds: expected some of ['update'], found ['trak']"),
        ([online, "--bins=0"], "bins: expected at least 1, found 0"),
    ):
        assert main(["learned-when", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
