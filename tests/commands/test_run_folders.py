"""Folders of runs that begin: two at once get two numbers, and one that was named is one run's."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from ftrace.commands.run_folders import claim_run_folders
from ftrace.files.claims import InUseError


def begun(logger: CSVLogger, claims: ExitStack) -> str:
    """Return the name of the folder that a run takes."""
    claim_run_folders([logger], claims)
    return Path(logger.log_dir).name


def test_runs_that_begin_at_once_have_numbers_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "runs" / "version_4").mkdir(parents=True)
    loggers = [CSVLogger(tmp_path, "runs") for _ in range(4)]
    assert {logger.version for logger in loggers[:3]} == {5}  # as Lightning chooses when all look before one writes
    for logger in loggers[:3]:
        logger._version = None
    with ExitStack() as claims:
        assert [begun(logger, claims) for logger in loggers[:2]] == ["version_5", "version_6"]
        (tmp_path / "runs" / "version_7").mkdir()  # by a run that began and ended meanwhile
        assert begun(loggers[2], claims) == "version_8"
    assert begun(loggers[3], ExitStack()) == "version_8"  # those that wrote nothing took no number
    assert not list((tmp_path / "runs").glob(".*"))


def test_a_folder_that_was_named_is_one_run_s(tmp_path: Path) -> None:
    with ExitStack() as claims:
        assert begun(CSVLogger(tmp_path, "runs", "mine"), claims) == "mine"
        with pytest.raises(InUseError, match=r"mine' is being written by ftrace fit .*name another version"):
            begun(CSVLogger(tmp_path, "runs", "mine"), claims)
    with ExitStack() as claims:
        assert begun(CSVLogger(tmp_path, "runs", "mine"), claims) == "mine"


def test_two_loggers_of_one_run_share_its_number(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, "runs"), CSVLogger(tmp_path, "runs")]
    with ExitStack() as claims:
        claim_run_folders([*loggers, object()], claims)
        assert {Path(logger.log_dir).name for logger in loggers} == {"version_0"}


def test_claims_of_killed_runs_are_removed(tmp_path: Path) -> None:
    dead = tmp_path / "a" / ".version_0.claim"
    (tmp_path / "a" / "version_0").mkdir(parents=True)
    dead.write_text("ftrace fit (process 1 on a host since yesterday)\n")
    with ExitStack() as claims:
        assert begun(CSVLogger(tmp_path, "a"), claims) == "version_1"
        assert not dead.exists()
        assert (tmp_path / "a" / ".version_1.claim").exists()
