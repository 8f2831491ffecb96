"""Every kind of score against the replay of its definition."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore
from helpers import replay
from helpers.pairwise import pairwise
from helpers.replay import OPTIMIZERS, trainer

# Every pair of settings meets. With this seed so do all combinations of the three that aren't the optimizer.
CASES = [
    (optimizer, momentum, integration, refresh, accumulate)
    for optimizer, momentum, (integration, refresh), accumulate in pairwise(
        list(OPTIMIZERS), ["eventual", "exact"], [("left", 1), ("left", 3), ("trapezoid", 1), ("trapezoid", 3)], [1, 2],
        seed=1,
    )
]  # fmt: skip


@pytest.mark.parametrize(("optimizer", "momentum", "integration", "refresh", "accumulate"), CASES)
def test_scores_equal_the_replay(
    optimizer: str, momentum: Any, integration: Any, refresh: int, accumulate: int, tmp_path: Path
) -> None:
    examples, asked = replay.rows(9, "example_id"), replay.rows(3, "query_id", seed=1)
    module = replay.Net(OPTIMIZERS[optimizer])
    by_hand = copy.deepcopy(module)
    online = OnlineTracIn(
        DataLoader(asked, batch_size=2), tmp_path / "online", scores=("dot", "update", "cosine"), momentum=momentum,
        integration=integration, refresh_every_n_steps=refresh,
    )  # fmt: skip
    trainer(tmp_path, callbacks=[online], accumulate_grad_batches=accumulate, gradient_clip_val=0.4).fit(
        module, DataLoader(examples, batch_size=2)
    )
    batches = [examples[i : i + 2] for i in range(0, 9, 2)]
    windows = [batches[i : i + accumulate] for i in range(0, 5, accumulate)] * 2
    full = [[*window] for window in windows]
    steps = replay.train(by_hand, full, asked, clip=0.4, accumulate=accumulate)
    for (name, found), expected in zip(module.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=name)
    store = ScoreStore.open(tmp_path / "online")
    for kind in ("dot", "update", "cosine"):
        expected = replay.scores(
            kind, by_hand, steps, asked, refresh=refresh, trapezoid=integration == "trapezoid",
            exact_momentum=momentum == "exact",
        )  # fmt: skip
        matrix = np.stack([expected[int(example)].numpy() for example in store.example_ids])
        np.testing.assert_allclose(
            store.matrix(kind), matrix, rtol=1e-8, atol=1e-9 * np.abs(matrix).max(), err_msg=kind
        )
    assert store.manifest["ledger"]["balanced"] is True
    assert store.manifest["ledger"]["worst_imbalance"] < 1e-9
    assert store.manifest["self_check"] == {"failures": []}
