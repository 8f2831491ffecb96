"""Files for resuming are deleted with the checkpoints of theirs, and with these alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore
from helpers import replay
from helpers.replay import OPTIMIZERS, trainer


class SaveByHand(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 7:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/by_hand.ckpt")


def train(folder: Path, resume: Path | None = None, **options: Any) -> None:
    queries: Any = DataLoader(replay.rows(3, "query_id", seed=1), batch_size=2)  # type: ignore[arg-type]
    checkpoints = pl.callbacks.ModelCheckpoint(
        folder / "checkpoints", save_top_k=1, save_last=True, every_n_train_steps=3, filename="{step}"
    )
    callbacks = [OnlineTracIn(queries, folder / "online", **options), SaveByHand(), checkpoints]
    loader = DataLoader(replay.rows(12, "example_id"), batch_size=2)  # type: ignore[arg-type]
    made = trainer(folder, callbacks=callbacks, max_epochs=5, enable_checkpointing=True)
    made.fit(replay.Net(OPTIMIZERS["adamw"]), loader, ckpt_path=resume)


def files_named_in(checkpoint: Path) -> set[str]:
    callbacks = torch.load(checkpoint, weights_only=True)["callbacks"]
    (state,) = (entry for key, entry in callbacks.items() if key.startswith("OnlineTracIn"))
    return {Path(entry["file"]).name for entry in state["files"]}


def test_each_checkpoint_that_is_left_can_be_resumed_and_no_other_has_files(tmp_path: Path) -> None:
    train(tmp_path)
    left = sorted(tmp_path.rglob("*.ckpt"))
    assert [file.name for file in left] == ["by_hand.ckpt", "last.ckpt", "step=30.ckpt"]
    named = set().union(*map(files_named_in, left))
    assert {file.name for file in (tmp_path / "online-state").glob("*.pt")} == named
    train(tmp_path, left[0])
    assert ScoreStore.open(tmp_path / "online").manifest["steps"] == 30
    assert files_named_in(left[0]) <= {file.name for file in (tmp_path / "online-state").glob("*.pt")}


def test_all_are_kept_on_request(tmp_path: Path) -> None:
    train(tmp_path, keep_states=True)
    assert len(list((tmp_path / "online-state").glob("*.pt"))) >= 11


def test_a_damaged_list_of_checkpoints_deletes_nothing_that_it_named(tmp_path: Path) -> None:
    train(tmp_path)
    before = {file.name for file in (tmp_path / "online-state").glob("*.pt")}
    (tmp_path / "online-state" / "checkpoints.json").write_text("{")
    train(tmp_path, tmp_path / "by_hand.ckpt")
    assert before <= {file.name for file in (tmp_path / "online-state").glob("*.pt")}
