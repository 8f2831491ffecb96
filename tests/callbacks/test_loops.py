"""Training loops: manual optimization, loss scalers, several loaders, compiled, unfrozen and clipping modules."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, default_collate

from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore
from helpers import oracle, replay
from helpers.replay import OPTIMIZERS, trainer
from helpers.replay_runs import ASKED, EXAMPLES, Frozen, Unfreeze, batches, fit, hold, queries


class ByHand(replay.Net):
    """Steps its optimizer by itself, after two backward passes, clipped."""

    raw = False
    twice = False

    def __init__(self, make_optimizer: Any) -> None:
        super().__init__(make_optimizer)
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        optimizer: Any = self.optimizers(use_pl_optimizer=not self.raw)
        if batch_idx % 2 == 0:
            optimizer.zero_grad()
        losses = self.example_losses(batch)
        if self.twice:
            self.manual_backward(losses.sum() / 12, retain_graph=True)
            self.manual_backward(losses.sum() / 6)
        else:
            self.manual_backward(losses.mean() / 2)
        if batch_idx % 2 == 1:
            nn.utils.clip_grad_norm_(self.parameters(), 0.4)
            optimizer.step()
            self.lr_schedulers().step()


@pytest.mark.parametrize("how", ["", "raw", "twice"])
@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_optimization_by_hand(optimizer: str, how: str, tmp_path: Path) -> None:
    """Gradients accumulated by hand and clipped by hand; through Lightning's optimizer or around it."""
    module = ByHand(OPTIMIZERS[optimizer])
    module.raw, module.twice = how == "raw", how == "twice"
    start = replay.Net(OPTIMIZERS[optimizer])
    store = fit(
        tmp_path, module, online={"scores": ("dot", "update") if how == "twice" else ("dot", "update", "cosine")}
    )
    hold(store, start, [batches()[i : i + 2] for i in (0, 2)] * 2, clip=0.4, accumulate=2)
    for found, expected in zip(module.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class TwoOptimizers(replay.Net):
    """One for the table, one for the net, stepped one after the other on the same gradients."""

    def __init__(self) -> None:
        super().__init__(OPTIMIZERS["momentum"])
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        table = torch.optim.SGD(self.table.parameters(), lr=0.05)
        return [table, torch.optim.Adam(self.net.parameters(), lr=0.01)]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.example_losses(batch).mean())
        for optimizer in self.optimizers():
            optimizer.step()


def test_several_optimizers_add_up_and_are_named(tmp_path: Path) -> None:
    module = TwoOptimizers()
    start = copy.deepcopy(module)
    store = fit(tmp_path, module, max_epochs=1, online={"scores": ("dot",), "refresh_every_n_steps": 2})
    first = batches()[0]
    examples = oracle.gradients(start, lambda: start.example_losses(default_collate(first)) / 2)
    asked = oracle.gradients(start, lambda: start.example_losses(default_collate(ASKED)))
    expected = torch.stack(
        [torch.stack([sum((0.05 if n == "table.weight" else 0.01) * (q[n] * e[n]).sum() for n in e) for q in asked])
         for e in examples]
    )  # fmt: skip
    found = store.matrix("dot")[np.isin(store.example_ids, [row["example_id"] for row in first])]
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    named = [(one["class"], one["steps"], one["parameters"]) for one in store.manifest["optimizers"]]
    assert named == [("torch.optim.sgd.SGD", 4, 20), ("torch.optim.adam.Adam", 4, 56)]


def test_update_with_several_optimizers_balances(tmp_path: Path) -> None:
    store = fit(tmp_path, TwoOptimizers(), online={"refresh_every_n_steps": 3, "integration": "trapezoid"})
    assert store.manifest["ledger"]["worst_imbalance"] < 1e-9


class Half(replay.Net):
    def __init__(self) -> None:
        super().__init__(OPTIMIZERS["adamw"])
        self.float()


class Skips(torch.amp.GradScaler):
    """Leaves out the third step, whatever its gradients."""

    steps = 0

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        self.steps += 1
        if self.steps == 3:
            return None
        return super().step(optimizer, *args, **kwargs)


def test_a_loss_scaler_is_taken_out_and_a_skipped_step_discarded(tmp_path: Path) -> None:
    stores = {}
    for scale in (1.0, 1024.0):
        plugin = MixedPrecision("16-mixed", "cpu", Skips("cpu", init_scale=scale))
        folder = tmp_path / str(scale)
        stores[scale] = fit(folder, Half(), precision=None, plugins=[plugin], max_epochs=1, gradient_clip_val=0.4)
    store = stores[1024.0]
    assert store.manifest["precision"] == "16-mixed"
    assert store.manifest["steps_skipped"] == [2]
    assert store.manifest["steps"] == 3
    skipped = {row["example_id"] for row in batches()[2]}
    assert skipped.isdisjoint(store.example_ids.tolist())
    assert store.manifest["ledger"]["balanced"] is True
    for kind in store.kinds:
        error = np.abs(store.matrix(kind) - stores[1.0].matrix(kind)).max() / np.abs(store.matrix(kind)).max()
        assert error < (0.05 if kind != "update" else np.inf), kind


def test_an_overflow_is_a_skipped_step(tmp_path: Path) -> None:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**40))
    store = fit(tmp_path, Half(), precision=None, plugins=[plugin], max_epochs=8)
    assert store.manifest["steps_skipped"]
    assert store.manifest["steps"] + len(store.manifest["steps_skipped"]) == 32
    assert np.isfinite(store.matrix("update")).all()


@pytest.mark.parametrize("how", ["part", "module", "own"])
def test_compiled_modules(how: str, tmp_path: Path) -> None:
    torch.compiler.reset()
    module = replay.Net(OPTIMIZERS["adamw"])
    start = copy.deepcopy(module)
    if how == "part":
        module.net.compile(backend="aot_eager")
    elif how == "own":
        module.compile(backend="aot_eager")
    given = torch.compile(module, backend="aot_eager") if how == "module" else module
    store = fit(tmp_path, given, max_epochs=1)
    hold(store, start, [[batch] for batch in batches()])


def test_unfrozen_parameters_are_covered_from_then_on(tmp_path: Path) -> None:
    store = fit(tmp_path, Frozen(), callbacks=[Unfreeze()], online={"breakdown": ("layer",)})
    assert store.manifest["unfrozen"] == {"4": ["table.weight"]}
    covered = [line["parameter"] for line in store.manifest["coverage"] if line["status"] == "covered"]
    assert "table.weight" in covered
    assert store.manifest["ledger"]["worst_imbalance"] < 1e-9
    for query in store.query_ids:
        parts = store.parts(query, "layer", "update")
        assert np.abs(parts["table"]).max() > 0
        np.testing.assert_allclose(sum(parts.values()), store.scores(query, "update"), rtol=1e-9)


class ClipsByItself(replay.Net):
    def configure_gradient_clipping(self, optimizer: Any, **kwargs: Any) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 0.4)


def test_clipping_of_the_modules_own_is_measured(tmp_path: Path) -> None:
    store = fit(tmp_path, ClipsByItself(OPTIMIZERS["adamw"]), max_epochs=1)
    hold(store, replay.Net(OPTIMIZERS["adamw"]), [[batch] for batch in batches()], clip=0.4)


class Two(replay.Net):
    """Two dataloaders, whose batches run one after another."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        several = batch.values() if isinstance(batch, dict) else batch
        losses = torch.cat([self.example_losses(one) for one in several])
        return losses.mean()


@pytest.mark.parametrize("sizes", [(2, 2), (1, 3)])
def test_several_dataloaders(sizes: tuple[int, int], tmp_path: Path) -> None:
    first, second = EXAMPLES[: 2 * sizes[0]], EXAMPLES[2 * sizes[0] : 2 * sum(sizes)]
    loaders = {"a": DataLoader(first, batch_size=sizes[0]), "b": DataLoader(second, batch_size=sizes[1])}
    store = fit(tmp_path, Two(OPTIMIZERS["adamw"]), loaders, max_epochs=1)
    windows = [[first[i * sizes[0] : (i + 1) * sizes[0]] + second[i * sizes[1] : (i + 1) * sizes[1]]] for i in range(2)]
    hold(store, replay.Net(OPTIMIZERS["adamw"]), windows)


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[replay.Row]:
        for row in EXAMPLES:
            yield {**row, "example_id": f"train/{row['example_id']}"}


def test_a_stream_of_named_examples(tmp_path: Path) -> None:
    named = [{**row, "query_id": f"query {row['query_id']}"} for row in ASKED]
    whole = fit(tmp_path / "numbered", replay.Net(OPTIMIZERS["adamw"]))
    loader = DataLoader(Stream(), batch_size=2)
    store = fit(tmp_path / "named", replay.Net(OPTIMIZERS["adamw"]), loader, {"queries": queries(named)})
    assert store.example_names is not None
    assert set(store.example_names) == {f"train/{row['example_id']}" for row in EXAMPLES}
    order = np.argsort([int(name.split("/")[1]) for name in store.example_names])
    for row in ASKED:
        found = store.scores(f"query {row['query_id']}", "update")[order]
        np.testing.assert_allclose(found, whole.scores(row["query_id"], "update"), rtol=1e-9)


class Validates(replay.Net):
    """With validation and sanity checking, in which it draws random numbers."""

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        assert not self.training
        self.log("loss", self.example_losses(batch).mean() + 0 * torch.rand(()))


def test_validation_in_between_changes_nothing(tmp_path: Path) -> None:
    """Sanity checking, validation within accumulation windows, and an end within one, by max_steps."""
    online = {"refresh_every_n_steps": 2, "integration": "trapezoid", "momentum": "exact"}
    settings: dict[str, Any] = {"accumulate_grad_batches": 3, "max_steps": 3, "max_epochs": None, "online": online}
    plain = fit(tmp_path / "plain", replay.Net(OPTIMIZERS["adamw"]), **settings)
    folder, queries_of = tmp_path / "validated", DataLoader(ASKED, batch_size=2)  # type: ignore[arg-type]
    callback = OnlineTracIn(
        queries(), folder / "online", scores=("dot", "update", "cosine"), **{"refresh_every_n_steps": 1, **online}
    )
    made = trainer(
        folder, callbacks=[callback], accumulate_grad_batches=3, max_steps=3, max_epochs=None, val_check_interval=1,
        num_sanity_val_steps=1,
    )  # fmt: skip
    made.fit(Validates(OPTIMIZERS["adamw"]), DataLoader(EXAMPLES, batch_size=2), queries_of)  # type: ignore[arg-type]
    store = ScoreStore.open(folder / "online")
    assert store.manifest["steps"] == plain.manifest["steps"] == 3
    for kind in plain.kinds:
        np.testing.assert_allclose(store.matrix(kind), plain.matrix(kind), rtol=1e-12)
