"""Snapshots hold what attribution needs, at the steps that were asked for, and never half of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from ftrace.callbacks import CheckpointSnapshots
from ftrace.callbacks.checkpoint_snapshots import log_spaced_steps
from ftrace.models import find_snapshots, load_snapshot
from helpers import tiny


class Module(pl.LightningModule):
    def __init__(self, optimizer: str = "adamw") -> None:
        super().__init__()
        self.model = tiny.t5(torch.float32)
        self.optimizer = optimizer

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        kinds = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "adafactor": torch.optim.Adafactor}
        optimizer = kinds[self.optimizer](self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), "interval": "step"}]


def fit(tmp_path: Path, callback: pl.Callback, module: pl.LightningModule, **trainer: Any) -> pl.Trainer:
    batch = tiny.batch("t5", 8)
    rows = [{name: values[i] for name, values in batch.items()} for i in range(8)]
    settings = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    made = pl.Trainer(
        **{**settings, "default_root_dir": tmp_path, "enable_model_summary": False, **trainer}, callbacks=[callback]
    )
    made.fit(module, DataLoader(rows, batch_size=2))  # 4 steps an epoch
    return made


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in find_snapshots(folder)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"steps": [0, 3, 5]}, [0, 3, 5]),
        ({"every_n_steps": 5}, [0, 5, 10]),
        ({"log_spaced": 3}, [0, 1, 3, 12]),
    ],
    ids=str,
)
def test_schedules(schedule: dict[str, Any], expected: list[int], tmp_path: Path) -> None:
    fit(tmp_path, CheckpointSnapshots(tmp_path / "snapshots", **schedule), Module())
    assert steps(tmp_path / "snapshots") == expected
    assert not [path for path in (tmp_path / "snapshots").iterdir() if path.name.startswith(".")]


def test_steps_are_optimizer_steps(tmp_path: Path) -> None:
    fit(tmp_path, CheckpointSnapshots(tmp_path / "s", every_n_steps=1), Module(), accumulate_grad_batches=2)
    assert steps(tmp_path / "s") == list(range(7))


def test_a_snapshot_holds_weights_moments_and_rates_of_its_step(tmp_path: Path) -> None:
    module = Module()
    trainer = fit(tmp_path, CheckpointSnapshots(tmp_path / "s", steps=[4, 12]), module)
    last = find_snapshots(tmp_path / "s")[-1]
    other = Module()
    manifest = load_snapshot(other, last)
    for name, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    moments = load_file(last / "second_moments.safetensors")
    state = trainer.optimizers[0].state
    assert moments.keys() == {f"{name}::exp_avg_sq" for name, _ in module.named_parameters()}
    for name, parameter in module.named_parameters():
        assert torch.equal(moments[f"{name}::exp_avg_sq"], state[parameter]["exp_avg_sq"])
    (optimizer,) = manifest["optimizers"]
    assert optimizer["groups"][0]["learning_rate"] == pytest.approx(0.01 * 0.5**12)
    assert manifest["step"] == 12
    assert manifest["tied"]["model.lm_head.weight"] == "model.shared.weight"
    at_4 = json.loads((find_snapshots(tmp_path / "s")[0] / "snapshot.json").read_text())
    assert at_4["optimizers"][0]["groups"][0]["learning_rate"] == pytest.approx(0.01 * 0.5**4)


def test_a_snapshot_is_loaded_in_the_dtypes_that_it_was_trained_in(tmp_path: Path) -> None:
    module = Module().bfloat16()
    fit(tmp_path, CheckpointSnapshots(tmp_path / "s", steps=[2]), module, max_epochs=1)
    other = Module()
    load_snapshot(other, find_snapshots(tmp_path / "s")[-1])
    assert {weight.dtype for weight in other.parameters()} == {torch.bfloat16}
    assert other.model.lm_head.weight is other.model.shared.weight


@pytest.mark.parametrize(("optimizer", "expected"), [("sgd", None), ("adafactor", "::row_var")])
def test_other_optimizers(optimizer: str, expected: str | None, tmp_path: Path) -> None:
    fit(tmp_path, CheckpointSnapshots(tmp_path / "s", steps=[2]), Module(optimizer), max_epochs=1)
    file = find_snapshots(tmp_path / "s")[0] / "second_moments.safetensors"
    assert file.exists() == (expected is not None)
    if expected:
        assert any(name.endswith(expected) for name in load_file(file))


def test_the_users_model_checkpoint_stays(tmp_path: Path) -> None:
    trainer = fit(tmp_path, CheckpointSnapshots(tmp_path / "s", steps=[1]), Module(), max_epochs=1)
    assert isinstance(trainer.checkpoint_callback, pl.callbacks.ModelCheckpoint)
    assert not issubclass(CheckpointSnapshots, pl.callbacks.Checkpoint)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("ftrace.online.snapshots.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        fit(tmp_path, CheckpointSnapshots(tmp_path / "s", steps=[1]), Module())
    assert list((tmp_path / "s").iterdir()) == []


def test_another_runs_snapshots_are_not_mixed_with_this_ones(tmp_path: Path) -> None:
    fit(tmp_path, CheckpointSnapshots(tmp_path / "s", steps=[8]), Module())
    with pytest.raises(ValueError, match="holds snapshots of an earlier run"):
        fit(tmp_path, CheckpointSnapshots(tmp_path / "s", steps=[4]), Module())
    assert steps(tmp_path / "s") == [8]


def test_extra_state_is_no_weight(tmp_path: Path) -> None:
    class Extra(Module):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

        def set_extra_state(self, state: dict[str, int]) -> None:
            assert state == {"a": 1}

    fit(tmp_path, CheckpointSnapshots(tmp_path / "s", steps=[1]), Extra(), max_epochs=1)
    load_snapshot(Extra(), find_snapshots(tmp_path / "s")[0])


def test_snapshots_of_another_model_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    fit(tmp_path, CheckpointSnapshots(tmp_path / "s", steps=[1]), Module(), max_epochs=1)
    folder = find_snapshots(tmp_path / "s")[0]
    with pytest.raises(ValueError, match="is of another model"):
        load_snapshot(torch.nn.Linear(2, 2), folder)
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        load_snapshot(Module(), folder)
    (folder / "snapshot.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a snapshot"):
        load_snapshot(Module(), folder)
    with pytest.raises(ValueError, match="no snapshot in"):
        find_snapshots(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({}, "expected exactly one of steps, every_n_steps, log_spaced, found none"),
        ({"steps": [1], "log_spaced": 2}, "expected exactly one of"),
        ({"steps": [-1]}, r"steps\[0\]: expected at least 0, found -1"),
        ({"every_n_steps": 0}, "every_n_steps: expected at least 1, found 0"),
    ],
    ids=str,
)
def test_bad_schedules(schedule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CheckpointSnapshots(**schedule)


def test_log_spaced_steps_end_with_the_last() -> None:
    assert log_spaced_steps(6, 1600) == [1, 4, 19, 84, 366, 1600]
    assert log_spaced_steps(1, 7) == [7]
    assert log_spaced_steps(10, 3) == [1, 2, 3]
