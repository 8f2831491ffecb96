"""The books balance when scores are right, and don't when they are wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, default_collate

from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore
from helpers import replay
from helpers.corrupted import change_contributions
from helpers.replay import OPTIMIZERS, trainer

ASKED = replay.rows(3, "query_id", seed=1)
EXAMPLES = replay.rows(9, "example_id")


def fit(tmp_path: Path, optimizer: str = "adamw", module: Any = None, online: Any = (), **settings: Any) -> ScoreStore:
    given = {"scores": ("dot", "update", "cosine"), **dict(online)}
    callback = OnlineTracIn(
        DataLoader(ASKED, batch_size=2), tmp_path / "online", **{"refresh_every_n_steps": 1, **given}
    )  # type: ignore[arg-type]
    loader = DataLoader(EXAMPLES, batch_size=3)  # type: ignore[arg-type]
    trainer(tmp_path, callbacks=[callback], **settings).fit(module or replay.Net(OPTIMIZERS[optimizer]), loader)
    return ScoreStore.open(tmp_path / "online")


def test_actual_and_predicted_are_what_they_say(tmp_path: Path) -> None:
    """Against the replay: losses, and minus the query gradient times the change of the weights, left and trapezoid."""
    store = fit(tmp_path, online={"integration": "trapezoid"}, max_epochs=2)
    module = replay.Net(OPTIMIZERS["adamw"])
    windows = [[EXAMPLES[i : i + 3]] for i in range(0, 9, 3)] * 2
    steps = replay.train(module, windows, ASKED, clip=None)
    final = replay.per_example(module, module.example_losses(default_collate(ASKED)))
    assert store.ledger is not None
    for t, step in enumerate(steps):
        for q in range(3):
            right = steps[t + 1].query_gradients[q] if t + 1 < len(steps) else final[q]
            left = step.query_gradients[q]
            change = {n: step.before[n] - step.after[n] for n in step.before}
            by_left = sum(float((left[n] * change[n]).sum()) for n in change)
            by_right = sum(float((right[n] * change[n]).sum()) for n in change)
            assert store.ledger["predicted_left"][t, q] == pytest.approx(by_left, rel=1e-9)
            assert store.ledger["predicted"][t, q] == pytest.approx((by_left + by_right) / 2, rel=1e-9)
            assert store.ledger["loss"][t, q] == pytest.approx(float(step.losses[q]), rel=1e-12)
    assert np.abs(store.ledger.actual - store.ledger["predicted"]).max() < 0.1 * np.abs(store.ledger.actual).max()


@pytest.mark.parametrize("momentum", ["eventual", "exact"])
@pytest.mark.parametrize("integration", ["left", "trapezoid"])
def test_what_examples_gained_is_what_was_booked(momentum: Any, integration: Any, tmp_path: Path) -> None:
    online = {"momentum": momentum, "integration": integration, "refresh_every_n_steps": 2}
    store = fit(tmp_path, online=online, max_epochs=3)
    assert store.ledger is not None
    np.testing.assert_allclose(store.ledger["examples"].sum(0), store.matrix("update").sum(0), rtol=1e-8)


@pytest.mark.parametrize("momentum", ["eventual", "exact"])
@pytest.mark.parametrize("integration", ["left", "trapezoid"])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_one_wrong_contribution_and_the_books_do_not_balance(
    optimizer: str, integration: Any, momentum: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One example's gradient of one layer, 10% too large, at one step; the self-check is off."""
    calls = []

    def corrupt(part: Any) -> Any:
        calls.append(len(calls))
        if len(calls) != 5:
            return part
        factors = torch.ones(len(part.rows), 1, 1, dtype=part.rows.dtype)
        factors[1] = 1.1
        return replace(part, rows=part.rows * factors)

    change_contributions(monkeypatch, "net.0.weight", corrupt)
    online = {"momentum": momentum, "integration": integration, "self_check": False}
    store = fit(tmp_path, optimizer, online=online, max_epochs=3)
    assert store.ledger is not None
    assert store.manifest["ledger"]["balanced"] is False
    off = store.ledger.imbalance()
    assert off[:4].max() < 1e-9
    assert off[4] > 1e-4
    assert store.manifest["ledger"]["worst_imbalance"] == off.max()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_parameters_that_scores_do_not_see_have_an_account(optimizer: str, tmp_path: Path) -> None:
    store = fit(tmp_path, optimizer, online={"parameters": ("net.*", "!*.bias"), "refresh_every_n_steps": 2})
    assert store.ledger is not None
    assert np.abs(store.ledger["uncovered"]).min() > 0
    assert store.manifest["ledger"]["worst_imbalance"] < 1e-9
    coverage = {line["parameter"]: line["status"] for line in store.manifest["coverage"]}
    assert coverage["table.weight"] == "excluded"


class Gap(replay.Net):
    """With a parameter that has a penalty in the training step, which is no example's."""

    def __init__(self) -> None:
        super().__init__(OPTIMIZERS["adamw"])
        self.scale = nn.Parameter(torch.ones(2).double())

    def example_losses(self, batch: Any) -> torch.Tensor:
        hidden = batch["x"] + self.table(batch["word"])
        return (self.net(hidden) * self.scale).square().mean(1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) + 0.1 * self.scale.square().sum()


def test_a_parameter_that_nothing_can_read_has_an_account_too(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="'scale' .*such as a penalty.*Left out"):
        store = fit(tmp_path, module=Gap(), online={"strict": False})
    assert store.manifest["ledger"]["worst_imbalance"] < 1e-9
    assert store.ledger is not None
    assert np.abs(store.ledger["uncovered"]).max() > 0


@pytest.mark.parametrize("momentum", ["eventual", "exact"])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw", "adafactor"])
def test_what_projection_takes_has_an_account(optimizer: str, momentum: Any, tmp_path: Path) -> None:
    online = {"projection_side": 2, "momentum": momentum, "integration": "trapezoid", "refresh_every_n_steps": 2}
    store = fit(tmp_path, optimizer, online=online)
    assert store.ledger is not None
    assert np.abs(store.ledger["projection"]).max() > 0
    assert store.manifest["ledger"]["worst_imbalance"] < 1e-9


def test_logged_and_summed_up(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="logs")
    store = fit(tmp_path, logger=logger, log_every_n_steps=2)
    metrics = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "ledger/actual" in metrics
    assert "ledger/examples" in metrics
    assert store.manifest["ledger"]["summary"].startswith(("the scores explain ", "the scores predict "))
    assert store.manifest["ledger"]["balanced"] is True


def test_without_a_ledger_there_is_none(tmp_path: Path) -> None:
    store = fit(tmp_path, online={"ledger": False})
    assert store.ledger is None
    assert "ledger" not in store.manifest


class Fails(pl.Callback):
    """Somebody's loss of queries that breaks in the middle of training."""

    calls = 0

    def __call__(self, module: Any, batch: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls > 9:
            raise RuntimeError("out of memory, say")
        return module.example_losses(batch)


def test_an_error_of_the_callback_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    """Reported at once; weights, random state, modes and hooks are those of a run without us, up to there."""

    class Stops(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 4:
                raise KeyError("stop")

    ends = []
    for callback in (
        Stops(),
        OnlineTracIn(DataLoader(ASKED, batch_size=2), tmp_path / "o", Fails(), refresh_every_n_steps=1),
    ):  # type: ignore[arg-type]
        pl.seed_everything(3, verbose=False)
        module = replay.Dropout(OPTIMIZERS["adamw"])
        with pytest.raises((KeyError, RuntimeError), match=r"stop|out of memory"):
            trainer(tmp_path, callbacks=[callback]).fit(module, DataLoader(EXAMPLES, batch_size=3))  # type: ignore[arg-type]
        assert all(one.training for one in module.modules())
        assert all(p.requires_grad for p in module.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in module.modules())
        ends.append((torch.cat([p.detach().flatten() for p in module.parameters()]), torch.get_rng_state()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


class Large(replay.Net):
    """It learns at a rate at which steps overshoot."""

    rate = 0.5

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Larger(Large):
    rate = 0.8


@pytest.mark.parametrize(
    ("module", "refresh", "remedy"),
    [
        (Large, 1, '(single steps changed the query gradients): take integration="trapezoid"'),
        (Larger, 3, '(query gradients were too old): refresh more often or take integration="trapezoid"'),
    ],
)
def test_a_short_training_at_a_large_rate_is_not_explained_in_percent(
    module: type[Large], refresh: int, remedy: str, tmp_path: Path
) -> None:
    """Left-point integration overshoots by so much that shares of the fall would say nothing; the remedy helps."""
    online = {"scores": ("update",), "refresh_every_n_steps": refresh, "self_check": False}
    left = fit(tmp_path / "left", module=module(OPTIMIZERS["sgd"]), online=online, max_epochs=4).ledger
    assert left is not None
    summary = left.summary()
    said = str(summary)
    assert summary.explained["examples"] > 2 * summary.fall > 0
    assert "%" not in said
    assert not summary.shares
    assert f"where a fall by {summary.fall:.3g} nats was measured" in said
    assert said.endswith(remedy)
    online |= {"integration": "trapezoid", "refresh_every_n_steps": 1}
    better = fit(tmp_path / "trapezoid", module=module(OPTIMIZERS["sgd"]), online=online, max_epochs=4).ledger
    assert better is not None
    assert abs(better.summary().explained["curvature"]) < 0.5 * abs(summary.explained["curvature"])
