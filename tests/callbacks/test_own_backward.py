"""Modules that run backward passes in ways of their own, or freeze layers right before: read late, and right."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from helpers import replay
from helpers.replay import OPTIMIZERS
from helpers.replay_runs import ASKED, EXAMPLES, batches, fit, hold

KINDS = ("dot", "update", "cosine")


class TwiceThroughTheGraph(replay.Net):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) / 2

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward(retain_graph=True)
        loss.backward()


def test_a_graph_may_be_gone_through_twice(tmp_path: Path) -> None:
    module = TwiceThroughTheGraph(OPTIMIZERS["sgd"])
    store = fit(tmp_path, module, online={"scores": KINDS})
    hold(store, replay.Net(OPTIMIZERS["sgd"]), [[batch] for batch in batches()] * 2)


class FrozenBeforeBackward(replay.Net):
    """Freezes a layer between the forward and the backward pass, so that it gets no gradient."""

    def on_before_backward(self, loss: Tensor) -> None:
        self.net[0].requires_grad_(self.trainer.global_step % 2 == 0)

    def on_after_backward(self) -> None:
        self.net[0].requires_grad_(True)


@pytest.mark.parametrize("size", [2, 4])
def test_a_layer_that_is_frozen_after_the_forward_pass_counts_nothing(size: int, tmp_path: Path) -> None:
    module = FrozenBeforeBackward(OPTIMIZERS["sgd"])
    start = copy.deepcopy(module)
    loader: DataLoader = DataLoader(EXAMPLES, batch_size=size)  # type: ignore[arg-type]
    store = fit(tmp_path, module, loader, online={"scores": KINDS}, max_epochs=1)
    (optimizer,), (schedule,) = start.configure_optimizers()
    expected: dict[int, Tensor] = {}
    for step, batch in enumerate(batches(size)):
        asked = replay.per_example(start, start.example_losses(default_collate(ASKED)))
        of_batch = replay.per_example(start, start.example_losses(default_collate(batch)) / size)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        wanted = {n: p for n, p in replay.trained(start).items() if step % 2 == 0 or not n.startswith("net.0.")}
        for row, own in zip(batch, of_batch, strict=True):
            products = [sum(rates[id(p)] * (q[n] * own[n]).sum() for n, p in wanted.items()) for q in asked]
            expected[row["example_id"]] = torch.stack(products)
        for name, parameter in wanted.items():
            parameter.grad = torch.stack([own[name] for own in of_batch]).sum(0)
        optimizer.step()
        optimizer.zero_grad()
        schedule["scheduler"].step()
    found = torch.tensor(store.matrix("dot"))
    torch.testing.assert_close(found, torch.stack([expected[i] for i in store.example_ids.tolist()]), rtol=1e-9, atol=0)
