"""Optimization by hand in its stranger forms, each held against the same steps under automatic optimization."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn, SelfCheckError
from ftrace.scores import ScoreStore
from helpers import replay
from helpers.replay import OPTIMIZERS, trainer
from helpers.replay_runs import ASKED, EXAMPLES, AddQueries, Frozen, Unfreeze, fit

KINDS = {"scores": ("dot", "update", "cosine")}
INTEGRATIONS = {
    "left": {},
    "trapezoid": {"integration": "trapezoid"},
    "exact": {"momentum": "exact"},
    "exact trapezoid": {"momentum": "exact", "integration": "trapezoid", "staleness_every": 1},
}


def equal(first: ScoreStore, second: ScoreStore) -> None:
    for kind in first.kinds:
        one, other = np.array(first.matrix(kind)), np.array(second.matrix(kind))
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12 * np.abs(one).max(), err_msg=kind)
    for store in (first, second):
        assert store.manifest["ledger"]["worst_imbalance"] < 1e-9
        assert store.manifest["self_check"] == {"failures": []}


class Alternating(replay.Net):
    """A table's optimizer and a net's, taking turns; the other one's parameters may be switched off."""

    toggles = False

    def __init__(self) -> None:
        super().__init__(OPTIMIZERS["adamw"])
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.table.parameters(), lr=0.05, momentum=0.9),
            torch.optim.Adam(self.net.parameters(), lr=0.01),
        ]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            if self.toggles:
                self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(self.example_losses(batch).mean())
            optimizer.step()
            if self.toggles:
                self.untoggle_optimizer(optimizer)


@pytest.mark.parametrize("refresh", [1, 3])
@pytest.mark.parametrize("how", INTEGRATIONS)
def test_optimizers_that_take_turns(how: str, refresh: int, tmp_path: Path) -> None:
    """Switching the other's parameters off changes no step, so it changes no score."""
    stores = []
    for toggles in (False, True):
        module = Alternating()
        module.toggles = toggles
        online = {**KINDS, **INTEGRATIONS[how], "refresh_every_n_steps": refresh}
        stores.append(fit(tmp_path / str(toggles), module, online=online))
    equal(*stores)


class OneWaits(Alternating):
    """The table's optimizer accumulates two batches while the net's steps at each."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        table, net = self.optimizers()
        if batch_idx % 2 == 0:
            table.zero_grad()
        net.zero_grad()
        self.manual_backward(self.example_losses(batch).mean())
        net.step()
        if batch_idx % 2 == 1:
            table.step()


@pytest.mark.parametrize("how", INTEGRATIONS)
def test_one_optimizer_accumulates_while_another_steps(how: str, tmp_path: Path) -> None:
    store = fit(tmp_path, OneWaits(), online={**KINDS, **INTEGRATIONS[how]})
    assert store.manifest["self_check"] == {"failures": []}
    assert [one["steps"] for one in store.manifest["optimizers"]] == [4, 8]


class Closes(replay.Net):
    """Steps with a closure."""

    raw = False

    def __init__(self, make_optimizer: Any) -> None:
        super().__init__(make_optimizer)
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        optimizer: Any = self.optimizers(use_pl_optimizer=not self.raw)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.example_losses(batch).mean()
            self.manual_backward(loss)
            return loss

        optimizer.step(closure=closure)
        self.lr_schedulers().step()


def test_a_closure_is_heard_or_refused(tmp_path: Path) -> None:
    automatic = fit(tmp_path / "automatic", replay.Net(OPTIMIZERS["adamw"]))
    equal(automatic, fit(tmp_path / "closure", Closes(OPTIMIZERS["adamw"])))
    module = Closes(OPTIMIZERS["adamw"])
    module.raw = True
    with pytest.raises(ValueError, match="stepped with a closure, whose backward pass can't be recorded"):
        fit(tmp_path / "raw", module)


class Unannounced(Closes):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.example_losses(batch).mean().backward()
        optimizer.step()


def test_a_backward_pass_that_lightning_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Call self.manual_backward\(loss\) instead of loss.backward\(\)"):
        fit(tmp_path, Unannounced(OPTIMIZERS["adamw"]))


class ByHand(replay.Net):
    def __init__(self, make_optimizer: Any) -> None:
        super().__init__(make_optimizer)
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.example_losses(batch).mean())
        optimizer.step()
        self.lr_schedulers().step()


@pytest.mark.parametrize("side", [None, 3])
def test_half_precision_by_hand_is_not_rounded_again(side: int | None, tmp_path: Path) -> None:
    stores = []
    for name, kind in (("automatic", replay.Net), ("by hand", ByHand)):
        online = {**KINDS, "projection_side": side}
        module = kind(OPTIMIZERS["adamw"]).float()
        stores.append(fit(tmp_path / name, module, online=online, precision="bf16-mixed", max_epochs=1))
    for kind in ("dot", "update", "cosine"):
        one, other = (np.array(store.matrix(kind)) for store in stores)
        assert np.abs(one - other).max() < 1e-5 * np.abs(one).max(), kind


class ValueClips(replay.Net):
    def configure_gradient_clipping(self, optimizer: Any, **kwargs: Any) -> None:
        nn.utils.clip_grad_value_(self.parameters(), 1e-3)


def test_clipping_of_ones_own_that_is_not_linear_is_caught(tmp_path: Path) -> None:
    with pytest.raises(SelfCheckError, match="Something changed it in between"):
        fit(tmp_path, ValueClips(OPTIMIZERS["adamw"]))


class Nesterov(replay.Net):
    def configure_gradient_clipping(self, optimizer: Any, **kwargs: Any) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 0.1)


def test_clipping_that_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    module = Nesterov(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True))
    with pytest.raises(ValueError, match=r"how much was clipped can't be told\. Make it with foreach=False"):
        fit(tmp_path, module)


def test_a_projected_update_is_not_swamped_by_what_was_never_trained(tmp_path: Path) -> None:
    """A word that no example has: Adam would divide its query gradient by next to nothing."""
    examples = [{**row, "word": row["word"] % 4} for row in EXAMPLES]
    asked = [{**row, "word": torch.tensor(4)} for row in ASKED]
    stores = []
    for side in (None, 16):
        online = {"queries": DataLoader(asked, batch_size=2), "scores": ("update",), "projection_side": side}  # type: ignore[arg-type]
        loader = DataLoader(examples, batch_size=2)  # type: ignore[arg-type]
        stores.append(fit(tmp_path / str(side), replay.Net(OPTIMIZERS["adamw"]), loader, online))
    exact, projected = (np.array(store.matrix("update")) for store in stores)
    assert np.corrcoef(exact.ravel(), projected.ravel())[0, 1] > 0.95
    assert np.abs(projected).max() < 2 * np.abs(exact).max()


def go_on(
    tmp_path: Path, make: Any, online: dict[str, Any], callbacks: Any = list, epochs: tuple[int, int] = (1, 3)
) -> tuple[ScoreStore, ScoreStore]:
    """An uninterrupted run, and one that ended, was saved, and went on."""
    loader = DataLoader(EXAMPLES, batch_size=2)  # type: ignore[arg-type]
    whole = fit(tmp_path / "whole", make(), online=online, callbacks=callbacks(), max_epochs=epochs[1])
    for last in epochs:
        queries = DataLoader(ASKED, batch_size=2)  # type: ignore[arg-type]
        callback = OnlineTracIn(queries, tmp_path / "parts", **{"refresh_every_n_steps": 1, **online})
        resume = tmp_path / "saved.ckpt" if last == epochs[1] else None
        made = trainer(tmp_path, callbacks=[*callbacks(), callback], max_epochs=last)
        made.fit(make(), loader, ckpt_path=resume)
        if resume is None:
            made.save_checkpoint(tmp_path / "saved.ckpt")
    return whole, ScoreStore.open(tmp_path / "parts")


@pytest.mark.parametrize("candidates", [None, {1: [1, 8], 8: [8], 15: []}])
@pytest.mark.parametrize("how", INTEGRATIONS)
def test_a_run_that_had_ended_goes_on_as_if_it_had_not(how: str, candidates: Any, tmp_path: Path) -> None:
    settings = {**KINDS, **INTEGRATIONS[how], "refresh_every_n_steps": 3, "candidates": candidates}
    whole, parts = go_on(tmp_path, lambda: replay.Net(OPTIMIZERS["adamw"]), settings)
    assert parts.manifest["ledger"]["worst_imbalance"] < 1e-9
    for query in whole.query_ids:
        for kind in whole.kinds:
            np.testing.assert_allclose(parts.scores(query, kind), whole.scores(query, kind), rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("how", ["left", "exact trapezoid"])
def test_a_run_with_unfrozen_parameters_goes_on(how: str, tmp_path: Path) -> None:
    class Thaws(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            pl_module.table.requires_grad_(trainer.current_epoch > 0)

    def make() -> replay.Net:
        module = replay.Net(OPTIMIZERS["adamw"])
        module.table.requires_grad_(False)
        return module

    settings = {**KINDS, **INTEGRATIONS[how], "refresh_every_n_steps": 3}
    whole, parts = go_on(tmp_path, make, settings, lambda: [Thaws()], (2, 3))
    equal(whole, parts)


def test_an_optimizer_around_lightning_goes_on(tmp_path: Path) -> None:
    class Raw(ByHand):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            self.manual_backward(self.example_losses(batch).mean())
            optimizer.step()
            self.lr_schedulers().step()

    equal(*go_on(tmp_path, lambda: Raw(OPTIMIZERS["adamw"]), KINDS))


def test_queries_that_are_added_within_a_window_wait_for_its_end(tmp_path: Path) -> None:
    class AddInWindow(AddQueries):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.fit_loop.total_batch_idx == 4:
                trainer.callbacks[-1 if isinstance(trainer.callbacks[-1], OnlineTracIn) else 1].add_queries(  # type: ignore[attr-defined]
                    DataLoader(self.rows, batch_size=2)  # type: ignore[arg-type]
                )

        def on_train_epoch_start(self, *_: Any) -> None:
            pass

    later = [{**row, "query_id": 100 + row["query_id"]} for row in ASKED[:1]]
    store = fit(
        tmp_path, replay.Net(OPTIMIZERS["adamw"]), callbacks=[AddInWindow(later)], accumulate_grad_batches=2,
        online={**KINDS, "integration": "trapezoid"},
    )  # fmt: skip
    assert store.manifest["query_first_steps"] == {"101": 3}
    assert store.manifest["ledger"]["worst_imbalance"] < 1e-9


def test_candidates_may_have_names(tmp_path: Path) -> None:
    named = [{**row, "example_id": f"row {row['example_id']}"} for row in EXAMPLES]
    store = fit(
        tmp_path, replay.Net(OPTIMIZERS["adamw"]), DataLoader(named, batch_size=2),  # type: ignore[arg-type]
        {**KINDS, "candidates": ["row 8", "row 1"]},
    )  # fmt: skip
    assert store.example_names is not None
    assert sorted(store.example_names) == ["row 1", "row 8"]
    assert store.matrix("dot").any(0).all()


def test_thousands_of_queries_in_chunks(tmp_path: Path) -> None:
    """Their batches are a few of the loader's; results are those of each by itself."""
    asked = replay.rows(2000, "query_id", seed=1)
    few = fit(tmp_path / "few", replay.Net(OPTIMIZERS["adamw"]), online={**KINDS, "queries": DataLoader(asked[:3])})  # type: ignore[arg-type]
    loader = DataLoader(asked, batch_size=64)  # type: ignore[arg-type]
    many = fit(tmp_path / "many", replay.Net(OPTIMIZERS["adamw"]), online={**KINDS, "queries": loader})
    for kind in few.kinds:
        np.testing.assert_allclose(many.matrix(kind)[:, :3], few.matrix(kind), rtol=1e-9, atol=1e-14)


def test_frozen_parameters_may_be_given_to_the_optimizer_later_and_saved(tmp_path: Path) -> None:
    store = fit(tmp_path, Frozen(), callbacks=[Unfreeze()], online={**KINDS, "momentum": "exact", "projection_side": 4})
    assert store.manifest["ledger"]["worst_imbalance"] < 1e-9


class Fails(pl.Callback):
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 4:
            raise RuntimeError("no space left")


@pytest.mark.parametrize("how", INTEGRATIONS)
def test_a_checkpoint_that_is_saved_on_an_error_can_be_resumed(how: str, tmp_path: Path) -> None:
    settings = {**KINDS, **INTEGRATIONS[how], "refresh_every_n_steps": 3}
    loader = DataLoader(EXAMPLES, batch_size=8)  # type: ignore[arg-type]
    save = pl.callbacks.OnExceptionCheckpoint(tmp_path, filename="failed")
    ends = []
    for folder, callbacks, resume in (
        ("whole", [], None),
        ("parts", [Fails(), save], None),
        ("parts", [], "failed.ckpt"),
    ):
        queries = DataLoader(ASKED, batch_size=2)  # type: ignore[arg-type]
        online = OnlineTracIn(queries, tmp_path / folder, **{"refresh_every_n_steps": 1, **settings})
        made = trainer(
            tmp_path, callbacks=[*callbacks, online], max_epochs=-1, max_steps=8, enable_checkpointing=bool(callbacks)
        )
        module = replay.Net(OPTIMIZERS["adamw"])
        fails = pytest.raises(RuntimeError, match="no space left") if callbacks else contextlib.nullcontext()
        with fails:
            made.fit(module, loader, ckpt_path=tmp_path / resume if resume else None)
        ends.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(ends[0], ends[2])
    equal(ScoreStore.open(tmp_path / "whole"), ScoreStore.open(tmp_path / "parts"))


def test_what_another_failed_run_has_left_is_kept(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no space left"):
            fit(tmp_path, replay.Net(OPTIMIZERS["adamw"]), callbacks=[Fails()], max_epochs=6)
    stores = [ScoreStore.open(folder) for folder in tmp_path.glob("online-incomplete*")]
    assert len({store.manifest["run_id"] for store in stores}) == 2


def test_a_resumed_run_knows_queries_that_were_added(tmp_path: Path) -> None:
    later = [{**row, "query_id": 100 + row["query_id"]} for row in ASKED[:2]]
    whole = fit(
        tmp_path / "whole", replay.Net(OPTIMIZERS["adamw"]), callbacks=[AddQueries(later)], online=KINDS, max_epochs=3
    )
    loader = DataLoader(EXAMPLES, batch_size=2)  # type: ignore[arg-type]
    for last, asked in ((2, ASKED), (3, [*ASKED, *later])):
        callback = OnlineTracIn(
            DataLoader(asked, batch_size=2), tmp_path / "parts", **{"refresh_every_n_steps": 1, **KINDS}
        )  # type: ignore[arg-type]
        made = trainer(tmp_path, callbacks=[AddQueries(later), callback], max_epochs=last)
        made.fit(replay.Net(OPTIMIZERS["adamw"]), loader, ckpt_path=None if last == 2 else tmp_path / "saved.ckpt")
        if last == 2:
            made.save_checkpoint(tmp_path / "saved.ckpt")
    parts = ScoreStore.open(tmp_path / "parts")
    assert parts.manifest["query_first_steps"] == {"101": 4, "108": 4}
    equal(whole, parts)
