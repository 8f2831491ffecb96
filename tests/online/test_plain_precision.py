"""`ftrace.online.trace` in half and double precision, with adapters and accumulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.llama_loops import Llama, by_hand, by_lightning, weights

DTYPES = {"64-true": torch.float64, "32-true": torch.float32, "bf16-true": torch.bfloat16, "bf16-mixed": torch.float32}


@pytest.mark.parametrize("precision", DTYPES)
def test_weights_are_the_same_with_and_without(precision: str, tmp_path: Path) -> None:
    """Bit by bit, with an uneven last window, clipping and dropout in the adapters."""
    ends = []
    for folder in (tmp_path / "s", None):
        net = Llama(adapters=True, drop=0.2, dtype=DTYPES[precision])
        torch.manual_seed(3)
        store = by_hand(net, folder, accumulate=3, clip=0.05, precision=precision)
        ends.append(weights(net))
        if store is not None:
            assert store.manifest["self_check"] == {"failures": []}
            assert store.manifest["ledger"]["balanced"] is True
    assert torch.equal(*ends)


@pytest.mark.parametrize(("precision", "tolerance"), [("64-true", 1e-9), ("32-true", 1e-4), ("bf16-mixed", 0.05)])
def test_scores_are_those_of_lightning_in_the_same_precision(precision: str, tolerance: float, tmp_path: Path) -> None:
    stores = [
        loop(Llama(adapters=True, dtype=DTYPES[precision]), tmp_path / str(number), precision=precision, accumulate=3)
        for number, loop in enumerate((by_hand, by_lightning))
    ]
    for kind in ("dot", "cosine"):
        ours, theirs = (store.matrix(kind) for store in stores)
        np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max())
