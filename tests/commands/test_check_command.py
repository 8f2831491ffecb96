"""``ftrace check`` finds what ftrace has written, and every damage in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ftrace.cli import main
from ftrace.commands.endings import run_command
from ftrace.files import digests
from ftrace.files.manifests import write_json
from ftrace.scores import ScoreStore, Sum
from helpers.edited_json import as_version_1
from helpers.made_store import SCORES, make_ledger, make_store
from helpers.stored_runs import STORED_RUNS


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    make_store(folder / "online", ledger=make_ledger())
    make_store(folder / "tracin")
    write_json(folder / "answers.json", {"key": "a"})
    (folder / "notes.json").write_text("{ // not ours")
    (folder / "others.json").write_text('{"digest of": "others"}')
    return folder


def check(*folders: Path) -> int:
    return main(["check", *map(str, folders)])


def test_what_is_as_written_is_said_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(run) == 0
    said = capsys.readouterr().out
    assert [line.removeprefix(str(run)) for line in said.splitlines()] == [
        "/answers.json: 1 file as written",
        "/online: 8 files as written",
        "/tracin: 5 files as written",
    ]


def flip(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-3] + bytes([content[-3] ^ 4]) + content[-2:])


@pytest.mark.parametrize("name", ["online/learning.npy", "online/ledger.parquet", "tracin/queries.parquet"])
def test_damage_is_named_and_the_rest_is_checked(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    flip(run / name)
    assert check(run) == 2
    said = capsys.readouterr()
    assert said.out.count(" as written\n") == 2
    assert f"DAMAGED: '{run / name}' is damaged" in said.out
    assert said.err.count("\n") == 1
    assert "1 of 3 places damaged" in said.err


@pytest.mark.parametrize("name", ["snapshot", "gradient index", "causal traces", "data"])
def test_damage_of_any_file_is_found(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    STORED_RUNS[name].make(tmp_path, 0)
    assert check(tmp_path) == 0
    files = [file for file in tmp_path.rglob("*") if file.is_file() and "norms" not in file.parts]  # made anew
    for file in files:
        whole = file.read_bytes()
        flip(file)
        assert check(tmp_path) == 2, file
        file.write_bytes(whole)
    assert len(files) >= 3


def test_a_damaged_manifest_is_damage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "online" / "manifest.json").write_text("[]")
    flip(run / "tracin" / "manifest.json")
    flip(run / "answers.json")
    assert check(run) == 2
    assert capsys.readouterr().out.count("DAMAGED") == 2  # answers are made anew


def test_older_versions_are_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_version_1(run / "tracin" / "manifest.json")
    assert check(run / "tracin") == 0
    assert "of an older version, which notes no digests" in capsys.readouterr().out
    shutil.rmtree(run / "online")
    (run / "tracin" / "learning.npy").write_bytes(b"no")
    assert check(run) == 2


def test_what_is_shown_is_verified_whole_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {Sum("learning"): SCORES, Sum("learning", "layer", "first"): SCORES}
    store = make_store(tmp_path / "online", parts)
    flip(store.path / "learning.layer.0000.npy")  # which a table of queries doesn't need
    assert main(["show", str(store.path)]) == 0
    capsys.readouterr()
    for command in (["show"], ["report", "--tokens=0", "--out", str(tmp_path / "page.html")]):
        assert main([*command, str(store.path), "--check"]) == 2
        assert "learning.layer.0000.npy' is damaged" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_where_nothing_is_there_is_nothing_to_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path) == 2
    assert "found nothing of it" in capsys.readouterr().err
    assert check(tmp_path / "nowhere") == 2


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_a_command_ends_when_what_it_has_read_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(digests, "SMALL", 100)
    store = make_store(tmp_path / "s")
    assert run_command("work", lambda: store.matrix("learning")) == 0
    flip(store.path / "learning.npy")
    opened = ScoreStore.open(store.path)
    assert run_command("work", lambda: opened.matrix("learning")) == 2
    assert "learning.npy' is damaged" in capsys.readouterr().err
