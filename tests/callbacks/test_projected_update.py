"""Projected scores of the kind ``update``: exact where nothing is lost, exact in the first steps, doubted if noisy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftrace.commands.ledger import ledger_sentence
from ftrace.online.scoring.balances import EXACT_STEPS
from ftrace.scores import ScoreStore
from helpers import replay
from helpers.replay import OPTIMIZERS
from helpers.replay_runs import AddQueries, fit

LOSSLESS = 8  # no axis is longer, and no vector than its square
WAYS = [(momentum, integration) for momentum in ("eventual", "exact") for integration in ("left", "trapezoid")]


class Manual(replay.Net):
    """Optimized by hand, and with the gradients of the step before at every third step."""

    def __init__(self, make_optimizer: Any) -> None:
        super().__init__(make_optimizer)
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        if batch_idx % 3:
            optimizer.zero_grad()
        self.manual_backward(self.example_losses(batch).mean())
        optimizer.step()


def both(tmp_path: Path, module: type[replay.Net], optimizer: str, side: int, **settings: Any) -> list[ScoreStore]:
    """Train twice, exactly and projected."""
    online = {"refresh_every_n_steps": 3, "moments_tolerance": 0.0, **settings.pop("online", {})}
    stores = []
    for of_run in (None, side):
        given = {**online, "projection_side": of_run}
        stores.append(fit(tmp_path / str(of_run), module(OPTIMIZERS[optimizer]), online=given, **settings))
    return stores


def equal(stores: list[ScoreStore], rtol: float = 1e-8) -> None:
    exact, projected = stores
    for kind in exact.kinds:
        expected = exact.matrix(kind)
        np.testing.assert_allclose(projected.matrix(kind), expected, rtol=rtol, atol=1e-9 * np.abs(expected).max())
    assert exact.ledger is not None
    assert projected.ledger is not None
    np.testing.assert_allclose(projected.ledger["examples"], exact.ledger["examples"], rtol=1e-7, atol=1e-10)
    assert np.nanmax(np.abs(projected.ledger["projection"])) < 1e-9
    assert projected.manifest["ledger"]["worst_imbalance"] < 1e-9
    assert projected.manifest["self_check"] == {"failures": []}


@pytest.mark.parametrize(
    ("optimizer", "momentum", "integration"),
    [*(("adamw", *way) for way in WAYS), ("adam", "exact", "left"), ("adafactor", "exact", "trapezoid")],
)
def test_scores_are_exact_with_enough_directions(
    optimizer: str, momentum: str, integration: str, tmp_path: Path
) -> None:
    """Over twelve steps, the first of which have no balance, and the others two."""
    online = {"momentum": momentum, "integration": integration}
    equal(both(tmp_path, replay.Net, optimizer, LOSSLESS, online=online, gradient_clip_val=0.4, max_epochs=3))


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (replay.Net, {"accumulate_grad_batches": 2, "max_epochs": 5}),
        (replay.Net, {"callbacks": [AddQueries(replay.rows(4, "query_id", seed=5)[3:])]}),
        (Manual, {}),
    ],
    ids=["accumulation", "later queries", "by hand"],
)
@pytest.mark.parametrize(("momentum", "integration"), WAYS[::3])
def test_so_they_are_however_steps_come_about(
    momentum: str, integration: str, module: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    online = {"momentum": momentum, "integration": integration, "scores": ("update",)}
    equal(both(tmp_path, module, "adamw", LOSSLESS, online=online, **{"max_epochs": 3, **settings}))


@pytest.mark.parametrize(("momentum", "integration"), WAYS)
def test_the_first_steps_are_exact_however_few_the_directions(momentum: str, integration: str, tmp_path: Path) -> None:
    online = {"momentum": momentum, "integration": integration, "scores": ("update",)}
    equal(both(tmp_path, replay.Net, "adamw", 1, online=online, max_epochs=-1, max_steps=EXACT_STEPS))


def test_other_kinds_are_as_they_were(tmp_path: Path) -> None:
    """Balances are of ``update`` alone."""
    scores = ("dot", "cosine", "whitened", "learning")
    stores = [
        fit(
            tmp_path / name, replay.Net(OPTIMIZERS["adamw"]), max_epochs=3,
            online={"projection_side": 2, "scores": (*scores, *more), "refresh_every_n_steps": 2},
        )
        for name, more in (("without", ()), ("with", ("update",)))
    ]  # fmt: skip
    for kind in scores:
        np.testing.assert_allclose(stores[0].matrix(kind), stores[1].matrix(kind), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("side", [1, None])
def test_nonsense_is_said_to_be_nonsense(side: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And the remedy that the warning names helps."""
    module = replay.Net(lambda p: torch.optim.AdamW(p, lr=1e-3))
    online = {"projection_side": side, "scores": ("update", "dot"), "momentum": "exact", "seed": 1}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = fit(tmp_path, module, online=online, max_epochs=4)
    said = [str(warning.message) for warning in caught if "in doubt" in str(warning.message)]
    if side is None:
        assert said == store.doubts("update") == []
        assert "in doubt" not in caplog.text + ledger_sentence(store)
        return
    assert len(said) == 1
    assert "exact scores (projection_side=None)" in said[0]
    assert store.doubts("update")[0] in said[0]
    assert store.doubts("dot") == []
    assert "(in doubt: update). Scores: " in caplog.text
    assert store.doubts("update")[0] in ledger_sentence(store)
    with pytest.warns(UserWarning, match="in doubt: the random error of projecting"):
        store.top(1, kind="update")
