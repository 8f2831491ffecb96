"""Fabric's precision plugins under `trace(..., fabric=...)`: scores against plain autograd in the same precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from ftrace.online import trace
from ftrace.scores import ScoreStore
from helpers import llama_loops, oracle, replay
from helpers.llama_loops import Llama, by_fabric, losses, weights


def scaled() -> Fabric:
    """Float16, which Fabric itself replaces on a CPU, with a loss scaler."""
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    return Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))


def of(precision: Any) -> Callable[[], Fabric]:
    return lambda: Fabric(accelerator="cpu", devices=1, precision=precision)


FABRICS: dict[str, tuple[Callable[[], Fabric], float]] = {
    "64-true": (of("64-true"), 1e-6),  # Fabric gives a model's output back in float32
    "bf16-mixed": (of("bf16-mixed"), 2e-2),  # autograd rounds gradients of weights to 8 bits
    "bf16-true": (of("bf16-true"), 2e-2),
    "16-mixed": (scaled, 4e-3),
    "16-true": (of("16-true"), 4e-3),
}


@pytest.mark.parametrize("precision", FABRICS)
def test_scores_equal_autograd_in_the_same_precision(precision: str, tmp_path: Path) -> None:
    """One step of SGD over two batches; queries see the autocast that training does, and nothing more."""
    make, tolerance = FABRICS[precision]
    fabric, net = make(), Llama(dtype=torch.float32)
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    alone = copy.deepcopy(net)
    inside: list[tuple[bool, torch.dtype]] = []

    def watched(model: Any, batch: dict[str, Tensor]) -> Tensor:
        of_rows = losses(model, batch)
        inside.append((torch.is_autocast_enabled("cpu"), of_rows.dtype))
        return of_rows

    def own(batch: list[replay.Row]) -> Tensor:
        tokens = default_collate(batch)["input_ids"]
        with fabric.autocast():
            logits = alone(tokens)
        logits = logits.float()[:, :-1]
        return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").sum(1)

    asked = oracle.matrix(oracle.gradients(alone.eval(), lambda: own(llama_loops.ASKED))).double()
    of_examples = [
        oracle.matrix(oracle.gradients(alone.train(), lambda batch=batch: own(batch) / 4))
        for batch in llama_loops.BATCHES[:2]
    ]
    with trace(
        model, optimizer, lambda model, batch: watched(model, batch).mean(), fabric=fabric, scores=("dot", "cosine"),
        queries=llama_loops.queries(), query_losses=watched, output_dir=tmp_path / "s",
    ) as run:  # fmt: skip
        for batch in llama_loops.BATCHES[:2]:
            run.backward(run.loss(default_collate(batch)) / 2)
        fabric.clip_gradients(model, optimizer, max_norm=1e6)
        optimizer.step()
    assert set(inside) == {(False, torch.float32)}  # outside of the model, in training and of queries
    store = ScoreStore.open(tmp_path / "s")
    expected = 0.1 * torch.cat(of_examples).double() @ asked.T
    np.testing.assert_allclose(store.matrix("dot"), expected, atol=tolerance * float(expected.abs().max()))
    assert store.manifest["precision"] == precision
    assert store.manifest["self_check"] == {"failures": []}


@pytest.mark.parametrize("precision", [each for each in FABRICS if each != "16-true"])  # AdamW's eps is 0 in float16
def test_weights_are_the_same_with_and_without(precision: str, tmp_path: Path) -> None:
    """Bit by bit, with accumulation, an uneven last window, clipping and adapters; a loss scaler unscales."""
    ends = []
    for folder in (tmp_path / "s", None):
        net = Llama(adapters=True, drop=0.2, dtype=torch.float32)
        torch.manual_seed(3)
        store = by_fabric(net, folder, FABRICS[precision][0](), accumulate=3, clip=0.05)
        ends.append(weights(net))
        if store is not None:
            assert store.manifest["ledger"]["balanced"] is True
    assert torch.equal(*ends)


def test_a_scaled_loss_has_the_scores_of_one_that_is_not(tmp_path: Path) -> None:
    """Also of a fused optimizer, whose own step takes the loss scale out."""
    found = []
    for scale in (1.0, 256.0):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))
        net = Llama(dtype=torch.float32)
        model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), 0.05, fused=scale > 1))
        with trace(
            model, optimizer, llama_loops.mean_loss, fabric=fabric, queries=llama_loops.queries(),
            query_losses=losses, output_dir=tmp_path / str(scale), scores=("dot", "update"),
        ) as run:  # fmt: skip
            for batch in llama_loops.BATCHES:
                run.backward(run.loss(default_collate(batch)) / 3)
                optimizer.step()
                optimizer.zero_grad()
        found.append(ScoreStore.open(tmp_path / str(scale)))
    for kind in ("dot", "update"):
        scores = [store.matrix(kind) for store in found]
        np.testing.assert_allclose(scores[1], scores[0], atol=1e-2 * np.abs(scores[0]).max())


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_a_hugging_face_model_needs_no_losses(precision: Any, tmp_path: Path) -> None:
    """Scores are those of the plain loop in the same precision."""
    stores = []
    for uses_fabric in (True, False):
        model: Any = Llama(dtype=torch.float64 if precision == "64-true" else torch.float32).model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        settings: dict[str, Any] = {"precision": precision}
        if uses_fabric:
            settings = {"fabric": Fabric(accelerator="cpu", devices=1, precision=precision)}
            model, optimizer = settings["fabric"].setup(model, optimizer)
        folder = tmp_path / str(uses_fabric)
        with trace(model, optimizer, queries=llama_loops.queries(), output_dir=folder, **settings) as run:
            for batch in llama_loops.BATCHES:
                run.backward(run.loss(default_collate(batch)))
                optimizer.step()
                optimizer.zero_grad()
        stores.append(ScoreStore.open(folder))
    names = {store.manifest["query_losses"] for store in stores}
    assert names == {"ftrace.online.queries.query_losses.huggingface_losses"}
    np.testing.assert_allclose(stores[0].matrix("dot"), stores[1].matrix("dot"), rtol=1e-6, atol=1e-8)


def test_a_step_that_the_scaler_skips_is_none(tmp_path: Path) -> None:
    """Scores are those of a run that begins behind the batches whose gradients overflow."""
    batches, stores = 2 * llama_loops.BATCHES, []
    for name, scale, first in (("skips", 2.0**22, 0), ("begins later", 2.0**13, 9)):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))
        net = Llama(dtype=torch.float32)
        model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), 0.05))
        with trace(
            model, optimizer, llama_loops.mean_loss, fabric=fabric, queries=llama_loops.queries(),
            query_losses=losses, output_dir=tmp_path / name, scores=("dot", "update"),
        ) as run:  # fmt: skip
            for batch in batches[first:]:
                run.backward(run.loss(default_collate(batch)))
                optimizer.step()
                optimizer.zero_grad()
        assert scaler.get_scale() == 2.0**13
        stores.append(ScoreStore.open(tmp_path / name))
    skips, later = stores
    assert skips.manifest["steps"] == later.manifest["steps"] == 5
    assert skips.manifest["self_check"] == {"failures": []}
    seen = np.isin(skips.example_ids, later.example_ids)
    for kind in ("dot", "update"):
        assert not skips.matrix(kind)[~seen].any()
        np.testing.assert_array_equal(skips.matrix(kind)[seen], later.matrix(kind))


class Own(torch.nn.Module):
    """Has losses of its own, and says whether a query is right."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return self(batch["x"]).square().sum(1)

    def learned(self, batch: dict[str, Tensor]) -> Tensor:
        return self(batch["x"])[:, 0] > 0


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_losses_of_the_module_itself_run_in_fabrics_precision(precision: Any, tmp_path: Path) -> None:
    """Inputs in float32 are converted, as those of the forward pass are."""
    examples, asked = (
        [{**row, "x": row["x"].float()} for row in replay.rows(4, key)] for key in ("example_id", "query_id")
    )
    stores = []
    for given in (None, lambda model, batch: model(batch["x"]).square().sum(1)):
        fabric, net = of(precision)(), Own()
        model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), 0.1))
        with trace(
            model, optimizer, lambda model, batch: model(batch["x"]).square().sum(1).mean(), fabric=fabric,
            queries=asked, query_losses=given, output_dir=tmp_path / str(given is None),
        ) as run:  # fmt: skip
            run.backward(run.loss(default_collate(examples)))
            optimizer.step()
        stores.append(ScoreStore.open(tmp_path / str(given is None)))
    own, other = stores
    assert own.manifest["query_losses"].endswith("module_example_losses")
    assert own.answers is not None
    scale = np.abs(other.matrix("dot")).max()
    np.testing.assert_allclose(
        own.matrix("dot"), other.matrix("dot"), atol=(1e-6 if "64" in precision else 2e-2) * scale
    )
