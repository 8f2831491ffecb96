"""Loops with Lightning Fabric, traced: held against plain autograd, the plain loop, and Lightning's Trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import llama_loops
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
    options = {"stop": 2, "checkpoint": tmp_path / "checkpoint.pt", "integration": "trapezoid"}
    with pytest.raises(KeyboardInterrupt):
        by_fabric(Llama(adapters=True), tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()
    resumed = by_fabric(again := Llama(adapters=True), tmp_path / "s", **options, resume=True)
    assert torch.equal(weights(net), weights(again))
    assert resumed.manifest["steps"] == whole.manifest["steps"] == 7
    for kind in KINDS:
        np.testing.assert_allclose(resumed.matrix(kind), whole.matrix(kind), rtol=1e-6, atol=1e-12)
