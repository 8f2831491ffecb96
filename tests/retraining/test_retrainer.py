"""Retraining: with nothing left out, the run itself, bit by bit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ftrace.retraining import Retrainer
from ftrace.runs import Run
from helpers import warm_python

ROOT = Path(__file__).parents[2]
SMALLER = [
    "--data.init_args.synth.num_entities=12", "--data.init_args.synth.num_relations=2",
    "--data.init_args.synth.num_facts=8", "--data.init_args.synth.num_test_utterances=4",
    "--model.init_args.config.d_model=16", "--model.init_args.config.d_ff=16",
    "--model.init_args.config.dropout_rate=0.1", "--model.init_args.warmup_steps=3",
    "--trainer.max_epochs=3", "--trainer.accumulate_grad_batches=2", "--trainer.enable_progress_bar=false",
    "--trace=null",
]  # fmt: skip
STEPS = 12  # 504 rows, 64 a batch, two batches a step, three epochs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with callbacks, dropout, accumulation, clipping and a validation after each epoch."""
    folder = tmp_path_factory.mktemp("run")
    config = yaml.safe_load((ROOT / "configs" / "counterfactual.yaml").read_text())
    config["trainer"]["callbacks"][1]["init_args"] = {"steps": [0, STEPS]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [ROOT / "train.py", "fit", "--config", folder / "config.yaml", *SMALLER]
    # As many threads as here: how a sum is split among threads is in its last bits.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = warm_python.run(*command, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return Run(folder / "runs" / "counterfactual" / "version_0")


def test_with_nothing_left_out_the_weights_are_the_runs_bit_by_bit(run: Run) -> None:
    assert run.last_snapshot.name == f"step-{STEPS:08d}"
    everything = np.ones(len(run.data.train_rows), bool)
    expected, found = run.model.state_dict(), Retrainer(run).train(everything).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    other = Retrainer(run).train(everything, order_seed=1).state_dict()
    assert not all(torch.equal(other[name], expected[name]) for name in expected)


def test_outcomes_are_the_models_losses_and_can_be_repeated(run: Run) -> None:
    retrainer, is_kept = Retrainer(run), np.arange(len(run.data.train_rows)) % 2 == 0
    outcome, model = retrainer.query_outcome(is_kept, 4), retrainer.train(is_kept, 4)
    batch = next(iter(run.data.query_dataloader()))
    with torch.no_grad():
        np.testing.assert_array_equal(outcome.losses, model.example_losses(batch).numpy())
    np.testing.assert_array_equal(outcome.learned, model.learned(batch).numpy())
    assert outcome.losses.shape == (8,)


@pytest.mark.parametrize(("budget", "steps"), [("epochs", 6), ("steps", STEPS)])
def test_as_many_epochs_or_as_many_steps(run: Run, budget: str, steps: int) -> None:
    is_kept = np.arange(len(run.data.train_rows)) % 2 == 0
    model = Retrainer(run, budget).train(is_kept)  # type: ignore[arg-type]
    assert model.trainer.global_step == steps
    schedule = model.lr_schedulers()
    assert schedule.get_last_lr() == [0.0]  # type: ignore[union-attr] # it has come to its end


@pytest.mark.parametrize(
    ("changes", "budget", "message"),
    [
        ({"trainer": None}, "epochs", "expected a section trainer, as train.py saves it"),
        ({"seed_everything": None}, "epochs", "expected seed_everything to be the seed that the run began with"),
        ({"seed_everything": True}, "epochs", "found True. Train with a seed"),
        ({"trainer": {"max_steps": 9}}, "epochs", r"budget: expected steps, .* for 9 steps \(trainer.max_steps\)"),
        ({"trainer": {"max_epochs": 2, "limit_train_batches": 3}}, "steps", "it has trainer.limit_train_batches"),
        ({"trainer": {}}, "steps", "or neither max_epochs nor max_steps, found steps"),
        ({"trainer": {"max_epochs": 2, "max_time": "00:00:10:00"}}, "epochs", "repeated, found trainer.max_time in it"),
    ],
)
def test_runs_that_cannot_be_repeated_are_refused(
    run: Run, tmp_path: Path, changes: dict[str, object], budget: str, message: str
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**run.config, **changes}))
    with pytest.raises(ValueError, match=message):
        Retrainer(Run(tmp_path), budget)  # type: ignore[arg-type]


def test_callbacks_that_are_left_out_are_named(run: Run, tmp_path: Path) -> None:
    trainer = {**run.config["trainer"], "callbacks": [{"class_path": "lightning.pytorch.callbacks.EarlyStopping"}]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**run.config, "trainer": trainer}))
    with pytest.warns(
        UserWarning, match=r"without the run's callbacks \['lightning.pytorch.callbacks.EarlyStopping'\]"
    ):
        Retrainer(Run(tmp_path))


def test_the_key_tells_what_weights_depend_on_and_nothing_else(run: Run, tmp_path: Path) -> None:
    def key(**changes: object) -> str:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({**run.config, **changes}))
        return Retrainer(Run(tmp_path)).key

    trainer = run.config["trainer"]
    assert key() == key(trainer={**trainer, "callbacks": None, "logger": False, "log_every_n_steps": 3}, trace=None)
    others = [key(seed_everything=5), key(trainer={**trainer, "gradient_clip_val": 2.0})]
    assert len({key(), *others}) == 3
