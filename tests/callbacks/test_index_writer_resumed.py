"""GradientIndexWriter in runs that go on: killed and resumed, in the folder of a logger, and fitted again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from ftrace.callbacks import GradientIndexWriter
from ftrace.index import GradientIndex
from helpers.language_runs import AdamModule, fit, rows


class Describe:
    """Texts that say in which call they were made, so that they tell whether they were made again."""

    calls = 0

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        self.calls += 1
        return {"text": [f"{i}, call {self.calls}" for i in batch["example_id"].tolist()]}


class Killed(RuntimeError):
    pass


class Kill(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


def checkpoint(folder: Path, every: int) -> pl.Callback:
    return pl.callbacks.ModelCheckpoint(folder, every_n_train_steps=every, save_top_k=-1, filename="{step}")


def texts_of(index: GradientIndex) -> list[str]:
    assert index.examples is not None
    texts: list[str] = index.examples.column("text").to_pylist()
    return texts


@pytest.mark.parametrize("kill_at", [4, 5, 8])
def test_killed_and_resumed_is_as_if_uninterrupted(tmp_path: Path, kill_at: int) -> None:
    def train(name: str, more: Sequence[pl.Callback], **fit_options: Any) -> None:
        writer = GradientIndexWriter(
            tmp_path / name, segment_steps=2, projection_side=2, dtype="float64", shard_bytes=200, describe=Describe()
        )
        pl.seed_everything(7, verbose=False)
        trainer = pl.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            precision="64-true", default_root_dir=tmp_path, callbacks=[writer, *more],
        )  # fmt: skip
        trainer.fit(AdamModule("gpt2"), DataLoader(rows("gpt2", 9), batch_size=3), **fit_options)

    saved = tmp_path / "checkpoints"
    train("whole", [checkpoint(tmp_path / "other", 3)])
    with pytest.raises(Killed):
        train("index", [checkpoint(saved, 3), Kill(kill_at)])
    with pytest.raises(ValueError, match="not finished"):
        GradientIndex(tmp_path / "index")
    for step in (6, 3) if kill_at == 8 else (3,):  # an older checkpoint, too
        train("index", [], ckpt_path=saved / f"step={step}.ckpt")
        whole, resumed = GradientIndex(tmp_path / "whole"), GradientIndex(tmp_path / "index")
        assert [len(one) for one in whole.segments] == [len(one) for one in resumed.segments]
        assert texts_of(whole) == texts_of(resumed)
        for one, other in zip(whole.segments, resumed.segments, strict=True):
            assert (one.ids == other.ids).all()
            assert (one.weights == other.weights).all()
            torch.testing.assert_close(one.rows(0, len(one)), other.rows(0, len(one)), rtol=0, atol=0)
            for block, R in one.autocorrelation().items():
                torch.testing.assert_close(R, other.autocorrelation()[block], rtol=0, atol=0)


def test_a_resumed_run_goes_on_in_the_folder_that_its_logger_had_before(tmp_path: Path) -> None:
    def train(more: Sequence[pl.Callback], **fit_options: Any) -> None:
        trainer = pl.Trainer(
            max_epochs=2, accelerator="cpu", logger=pl.loggers.CSVLogger(tmp_path, name="logs"), precision="64-true",
            enable_progress_bar=False, enable_model_summary=False,
            callbacks=[GradientIndexWriter(projection_side=2, segment_steps=2), *more],
        )  # fmt: skip
        trainer.fit(AdamModule("gpt2"), DataLoader(rows("gpt2", 9), batch_size=3), **fit_options)

    with pytest.raises(Killed):
        train([checkpoint(tmp_path / "saved", 3), Kill(5)])
    train([], ckpt_path=tmp_path / "saved" / "step=3.ckpt")
    index = GradientIndex(tmp_path / "logs" / "version_0" / "index")
    assert index.num_rows == 18
    assert not (tmp_path / "logs" / "version_1" / "index").exists()


def test_training_goes_on_with_the_same_callback(tmp_path: Path) -> None:
    writer = GradientIndexWriter(tmp_path / "index", projection_side=2, describe=Describe())
    loader, module = DataLoader(rows("gpt2", 6), batch_size=3), AdamModule("gpt2")
    trainer = fit(module, loader, tmp_path, [writer], max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader)
    assert texts_of(GradientIndex(tmp_path / "index")) == [f"{10 * i + 3}, call {1 + i // 3}" for i in range(6)]
    assert [len(segment) for segment in GradientIndex(tmp_path / "index").segments] == [6, 6]
