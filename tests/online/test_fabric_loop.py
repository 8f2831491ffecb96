"""Loops with Lightning Fabric, traced: held against plain autograd, the plain loop, and Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader, default_collate

from ftrace.online import trace
from ftrace.scores import ScoreStore
from helpers import llama_loops, replay
from helpers.llama_loops import KINDS, Llama, by_fabric, by_hand, by_lightning, weights


@pytest.mark.parametrize(
    ("adapters", "accumulate", "clip"), [(False, 1, 0.5), (False, 3, None), (True, 1, None), (True, 3, 0.05)]
)
def test_scores_are_those_of_autograd_of_the_plain_loop_and_of_lightning(
    adapters: bool, accumulate: int, clip: float | None, tmp_path: Path
) -> None:
    """Float64, AdamW with a schedule; the last window of accumulated batches is shorter."""
    net, gradients = Llama(adapters=adapters), []
    store = by_fabric(
        net, tmp_path / "fabric", accumulate=accumulate, clip=clip,
        before_step=lambda step: gradients.append(llama_loops.gradient(net)),
    )  # fmt: skip
    others = [
        by_hand(Llama(adapters=adapters), tmp_path / "plain", accumulate=accumulate, clip=clip),
        by_lightning(Llama(adapters=adapters), tmp_path / "lightning", accumulate=accumulate, clip=clip),
    ]
    alone = Llama(adapters=adapters)
    steps, expected = llama_loops.replayed(alone, accumulate, clip)
    assert len(steps) == store.manifest["steps"] == len(gradients)
    for step, gradient in zip(steps, gradients, strict=True):  # of each example alone, they sum to the step's gradient
        of_examples = [torch.cat([c.flatten() for c in of_one.values()]) for _, of_one in step.contributions]
        torch.testing.assert_close(torch.stack(of_examples).sum(0), gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(weights(net), weights(alone), rtol=1e-9, atol=1e-12)
    for kind in KINDS:
        scale = np.abs(store.matrix(kind)).max()
        for other in (*[other.matrix(kind) for other in others], llama_loops.matrix(store, expected[kind])):
            np.testing.assert_allclose(store.matrix(kind), other, rtol=1e-9, atol=1e-9 * scale)
    assert store.manifest["self_check"] == {"failures": []}
    assert store.manifest["ledger"]["balanced"] is True
    assert (store.manifest["strategy"], store.manifest["precision"]) == ("SingleDeviceStrategy", "32-true")
    assert "lightning" in store.manifest["versions"]


@pytest.mark.parametrize(
    "settings",
    [
        {"scores": ("whitened", "learning"), "projection_side": 3},
        {"scores": ("dot", "update"), "momentum": "exact", "breakdown": ("layer",)},
        {"integration": "trapezoid", "refresh_every_n_steps": 2},
        {"scores": ("learning", "update"), "projection_side": 3, "refresh_every_n_steps": 2},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_all_kinds_are_those_of_the_plain_loop_and_of_lightning(settings: dict[str, Any], tmp_path: Path) -> None:
    """With accumulation and an uneven last window."""
    loops: list[Callable[..., ScoreStore]] = [by_fabric, by_hand, by_lightning]
    stores = [
        loop(Llama(adapters=True), tmp_path / str(number), accumulate=3, **settings)
        for number, loop in enumerate(loops)
    ]
    for store in stores[1:]:
        assert store.kinds == stores[0].kinds
        assert store.breakdown == stores[0].breakdown
        assert store.manifest["refreshes"] == stores[0].manifest["refreshes"]
        for kind in store.kinds:
            scale = np.abs(store.matrix(kind)).max()
            assert scale > 0
            np.testing.assert_allclose(stores[0].matrix(kind), store.matrix(kind), rtol=1e-6, atol=1e-7 * scale)


def test_a_model_is_compiled_in_place(tmp_path: Path) -> None:
    """Otherwise an error says so; its scores are then those of one that isn't compiled."""
    fabric = Fabric(accelerator="cpu", devices=1)

    def squares(model: Any, batch: dict[str, Any]) -> torch.Tensor:
        return model(batch["x"]).square().sum(1)

    def train(how: str) -> ScoreStore:
        torch.compiler.reset()
        torch.manual_seed(0)
        net: Any = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).double()
        if how == "in place":
            net.compile(backend="aot_eager")
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        model: Any = torch.compile(net, backend="aot_eager") if how in ("before", "by hand") else net
        if how != "by hand":
            model, optimizer = fabric.setup(model, optimizer)
        with trace(
            torch.compile(model, backend="aot_eager") if how == "after" else model, optimizer,
            lambda model, batch: squares(model, batch).mean(), query_losses=squares,
            fabric=None if how == "by hand" else fabric,
            queries=replay.rows(3, "query_id", seed=1), output_dir=tmp_path / how, **llama_loops.SETTINGS,
        ) as run:  # fmt: skip
            for batch in DataLoader(replay.rows(6, "example_id"), batch_size=2):  # type: ignore[arg-type, var-annotated]
                run.backward(run.loss(batch))
                optimizer.step()
                optimizer.zero_grad()
        return ScoreStore.open(tmp_path / how)

    for how in ("before", "after"):
        with pytest.raises(ValueError, match=r"without torch\.compile.*Compile it in place.*: model\.compile\(\)"):
            train(how)
    plain = train("not")
    for compiled in (train("in place"), train("by hand")):  # by hand, without Fabric, torch.compile(model) is known
        for kind in KINDS:
            np.testing.assert_allclose(compiled.matrix(kind), plain.matrix(kind), rtol=1e-9, atol=1e-12)


def two_optimizers(net: Llama) -> list[Any]:
    parts = list(net.parameters())
    return [torch.optim.AdamW(parts[:5], lr=0.01), torch.optim.SGD(parts[5:], lr=0.1)]


def test_optimizers_that_take_turns(tmp_path: Path) -> None:
    """Each steps with the gradients of two batches, which meet the queries' of their backward passes: by autograd."""
    stores = []
    for fabric in (Fabric(accelerator="cpu", devices=1), None):
        model: Any = Llama()
        optimizers: Any = two_optimizers(model)
        if fabric is not None:
            model, *optimizers = fabric.setup(model, *optimizers)
        with trace(
            model, optimizers, llama_loops.mean_loss, fabric=fabric, queries=llama_loops.queries(),
            query_losses=llama_loops.losses, output_dir=tmp_path / str(fabric is None), **llama_loops.SETTINGS,
        ) as run:  # fmt: skip
            for number, batch in enumerate(llama_loops.BATCHES):
                run.backward(run.loss(default_collate(batch)))
                optimizers[number % 2].step()
                optimizers[number % 2].zero_grad()
        stores.append(ScoreStore.open(tmp_path / str(fabric is None)))
    for kind in KINDS:
        np.testing.assert_allclose(stores[0].matrix(kind), stores[1].matrix(kind), rtol=1e-9, atol=1e-12)

    net, expected = Llama(), {row["example_id"]: torch.zeros(3).double() for row in llama_loops.EXAMPLES}
    alone = two_optimizers(net)
    waiting: list[list[tuple[int, dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]]] = [[], []]
    for number, batch in enumerate(llama_loops.BATCHES):
        asked = replay.per_example(net, net.example_losses(default_collate(llama_loops.ASKED)))
        own = replay.per_example(net, net.example_losses(default_collate(batch)) / len(batch))
        for of_optimizer in waiting:
            of_optimizer += [(row["example_id"], grads, asked) for row, grads in zip(batch, own, strict=True)]
        [group] = alone[number % 2].param_groups
        names = {name: p for name, p in net.named_parameters() if any(p is other for other in group["params"])}
        for example, gradients, queries in waiting[number % 2]:
            products = [sum((query[name] * gradients[name]).sum() for name in names) for query in queries]
            expected[example] += group["lr"] * torch.stack(products)  # type: ignore[arg-type]
        for name, parameter in names.items():
            parameter.grad = torch.stack([gradients[name] for _, gradients, _ in waiting[number % 2]]).sum(0)
        alone[number % 2].step()
        waiting[number % 2] = []
    found = stores[0].matrix("dot")
    np.testing.assert_allclose(found, llama_loops.matrix(stores[0], expected), atol=1e-9 * np.abs(found).max())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_is_the_same_with_and_without(accumulate: int, tmp_path: Path) -> None:
    """Bit by bit, with dropout in the adapters."""
    ends = []
    for folder in (tmp_path / "s", None):
        net = Llama(adapters=True, drop=0.3)
        torch.manual_seed(5)
        by_fabric(net, folder, accumulate=accumulate, clip=0.05)
        ends.append((weights(net), torch.get_rng_state(), {name for name in vars(net) if "forward" in name}))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2]


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """From what ``fabric.save`` has saved, and ``fabric.load`` loads."""
    whole = by_fabric(net := Llama(adapters=True), tmp_path / "whole", integration="trapezoid")
    options: dict[str, Any] = {"stop": 2, "checkpoint": tmp_path / "checkpoint.pt", "integration": "trapezoid"}
    with pytest.raises(KeyboardInterrupt):
        by_fabric(Llama(adapters=True), tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()
    resumed = by_fabric(again := Llama(adapters=True), tmp_path / "s", **options, resume=True)
    assert torch.equal(weights(net), weights(again))
    assert resumed.manifest["steps"] == whole.manifest["steps"] == 7
    for kind in KINDS:
        np.testing.assert_allclose(resumed.matrix(kind), whole.matrix(kind), rtol=1e-6, atol=1e-12)
