"""Two at once: a folder is one run's from start to end, and whatever ends the run lets the next one in."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from torch.utils.data import DataLoader

from ftrace.callbacks import CheckpointSnapshots, GradientIndexWriter, OnlineTracIn
from ftrace.files.claims import InUseError, claimed
from ftrace.online import trace
from ftrace.scores import ScoreStore
from helpers import replay
from helpers.replay import OPTIMIZERS, trainer
from helpers.replay_runs import ASKED, EXAMPLES

CALLBACKS: dict[str, Callable[[Path], Any]] = {
    "OnlineTracIn": lambda folder: OnlineTracIn(queries(), folder),
    "GradientIndexWriter": lambda folder: GradientIndexWriter(folder, parameters=["net.1*", "net.3*"]),
    "CheckpointSnapshots": lambda folder: CheckpointSnapshots(folder, every_n_steps=3),
}


def queries() -> DataLoader:
    return DataLoader(ASKED, batch_size=2)  # type: ignore[arg-type]


def fit(tmp_path: Path, *callbacks: Any) -> None:
    loader = DataLoader(EXAMPLES, batch_size=2)  # type: ignore[arg-type]
    trainer(tmp_path, callbacks=list(callbacks)).fit(replay.Net(OPTIMIZERS["sgd"]), loader)


class During(pl.Callback):
    """Does something in the middle of training."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 4:
            self.action()


@pytest.mark.parametrize("name", CALLBACKS)
def test_the_folder_is_the_run_s_while_it_trains_and_no_longer(tmp_path: Path, name: str) -> None:
    folder, refused = tmp_path / "out", []

    def claim() -> None:
        with pytest.raises(InUseError) as error, claimed(folder, "second"):
            pass
        refused.append(str(error.value))

    fit(tmp_path, CALLBACKS[name](folder), During(claim))
    (message,) = refused
    assert message.startswith(f"{str(folder)!r} is being written by {name} (process ")
    with claimed(folder, "second"):
        pass
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_run_whose_folder_is_in_use_does_not_begin(tmp_path: Path, name: str) -> None:
    begun = During(lambda: pytest.fail("it trains"))
    refused = pytest.raises(ValueError, match=rf"^{name}: '.*out' is being written by first \(process .*Wait for it")
    with claimed(tmp_path / "out", "first"), refused:
        fit(tmp_path, CALLBACKS[name](tmp_path / "out"), begun)
    assert list(tmp_path.iterdir()) == []
    fit(tmp_path, CALLBACKS[name](tmp_path / "out"))  # the first has ended


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_every_ending_lets_the_next_run_in(tmp_path: Path, name: str, error: type[BaseException]) -> None:
    def fail() -> None:
        raise error("in the middle")

    with pytest.raises((error, SystemExit)):
        fit(tmp_path, CALLBACKS[name](tmp_path / "out"), During(fail))
    with claimed(tmp_path / "out", "next"):
        pass
    assert not list(tmp_path.glob(".*"))


def test_a_refused_start_lets_the_next_run_in(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="matches no parameter"):
        fit(tmp_path, OnlineTracIn(queries(), tmp_path / "out", parameters=["nothing*"]))
    with claimed(tmp_path / "out", "next"):
        pass


def test_a_store_that_came_there_during_training_is_not_replaced(tmp_path: Path) -> None:
    fit(tmp_path, OnlineTracIn(queries(), tmp_path / "first"))
    copied = During(lambda: shutil.copytree(tmp_path / "first", tmp_path / "out"))
    with pytest.warns(
        UserWarning, match=r"holds the scores of another run.*this run's scores go to '.*out-[0-9a-f]{8}'"
    ):
        fit(tmp_path, OnlineTracIn(queries(), tmp_path / "out"), copied)
    first, there = (ScoreStore.open(tmp_path / name).manifest["run_id"] for name in ("first", "out"))
    assert there == first
    (own,) = tmp_path.glob("out-*")
    assert ScoreStore.open(own).manifest["complete"] is True
    assert ScoreStore.open(own).manifest["run_id"] != first


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_what_callbacks_write_is_for_those_whom_the_umask_lets_in(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        fit(tmp_path, *(make(tmp_path / "runs" / name) for name, make in CALLBACKS.items()))
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "runs").rglob("*")}
    assert len({path.suffix for path in modes}) > 3
    for path, mode in modes.items():
        assert mode == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_a_plain_loop_claims_its_folder(tmp_path: Path) -> None:
    module = replay.Net(OPTIMIZERS["sgd"])
    optimizer = OPTIMIZERS["sgd"](module.parameters())

    def losses(model: Any, batch: Any) -> Any:
        return model.example_losses(batch)

    def run() -> Any:
        return trace(
            module, optimizer, lambda model, batch: losses(model, batch).mean(), queries=queries(),
            query_losses=losses, output_dir=tmp_path / "out", precision="64-true", ledger=False,
        )  # fmt: skip

    refused = pytest.raises(ValueError, match=r"ftrace\.online\.trace: .*out' is being written by first")
    with refused, claimed(tmp_path / "out", "first"), run():
        pass
    refused = pytest.raises(InUseError, match=r"is being written by ftrace\.online\.trace \(process")
    with refused, run(), claimed(tmp_path / "out", "second"):  # which ends the run by an error
        pass
    with claimed(tmp_path / "out", "next"):
        pass
