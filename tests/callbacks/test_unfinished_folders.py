"""What a run that ended early, or a trial, has left doesn't keep the next run from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from torch.utils.data import DataLoader

from ftrace.callbacks import CheckpointSnapshots, GradientIndexWriter, OnlineTracIn
from ftrace.index import GradientIndex
from ftrace.scores import ScoreStore
from helpers import replay
from helpers.replay import OPTIMIZERS, trainer


class Fails(pl.Callback):
    def __init__(self, *, saves: bool) -> None:
        self.saves = saves

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            if self.saves:
                trainer.save_checkpoint(f"{trainer.default_root_dir}/saved.ckpt")
            raise RuntimeError("killed")


def train(folder: Path, *callbacks: pl.Callback, **options: Any) -> None:
    loader = DataLoader(replay.rows(8, "example_id"), batch_size=2)  # type: ignore[arg-type]
    made = trainer(folder, callbacks=list(callbacks), max_epochs=2, **options)
    made.fit(replay.Net(OPTIMIZERS["adamw"]), loader)


def writer(folder: Path) -> GradientIndexWriter:
    return GradientIndexWriter(folder / "index", projection_side=2, segment_steps=2, parameters=["net.0.weight"])


def test_an_index_of_a_run_without_a_checkpoint_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, writer(tmp_path), Fails(saves=False))
    (tmp_path / "index" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds the index of another run"):
        train(tmp_path, writer(tmp_path))
    (tmp_path / "index" / "notes.txt").unlink()
    train(tmp_path, writer(tmp_path))
    assert "replaces the index" in caplog.text
    assert GradientIndex(tmp_path / "index").num_rows == 16


@pytest.mark.parametrize("saves", [True, None], ids=["a checkpoint needs it", "it is finished"])
def test_no_other_index_is_replaced(saves: bool | None, tmp_path: Path) -> None:
    if saves is None:
        train(tmp_path, writer(tmp_path))
    else:
        with pytest.raises(RuntimeError, match="killed"):
            train(tmp_path, writer(tmp_path), Fails(saves=True))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="holds the index of another run"):
        train(tmp_path, writer(tmp_path))
    assert sorted(path for path in tmp_path.rglob("*") if "index" in str(path)) == [
        path for path in before if "index" in str(path)
    ]


def test_a_trial_leaves_the_folders_of_the_run_alone(tmp_path: Path) -> None:
    def callbacks() -> list[pl.Callback]:
        queries: Any = DataLoader(replay.rows(3, "query_id", seed=1), batch_size=2)  # type: ignore[arg-type]
        return [
            OnlineTracIn(queries, tmp_path / "online"),
            writer(tmp_path),
            CheckpointSnapshots(tmp_path / "snapshots", every_n_steps=4),
        ]

    for _ in range(2):
        train(tmp_path, *callbacks(), fast_dev_run=True)
    assert {path.name.partition("-")[2] for path in tmp_path.iterdir() if path.is_dir()} == {"fast-dev-run"}
    train(tmp_path, *callbacks())
    assert ScoreStore.open(tmp_path / "online").manifest["steps"] == 8
    assert GradientIndex(tmp_path / "index").num_rows == 16
