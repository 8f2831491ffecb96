"""Options of OnlineTracIn: candidates, parts of a score, queries that come later, staleness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from helpers import replay
from helpers.replay import OPTIMIZERS
from helpers.replay_runs import ASKED, EXAMPLES, AddQueries, fit


def test_candidates_keep_what_a_whole_matrix_would(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", replay.Net(OPTIMIZERS["adamw"]))
    some = [1, 8, 50]
    one_list = fit(tmp_path / "list", replay.Net(OPTIMIZERS["adamw"]), online={"candidates": [*some, 999]})
    assert one_list.example_ids.tolist() == [*some, 999]  # never seen: 0
    of_each = {row["query_id"]: some[index:] for index, row in enumerate(ASKED)}
    ragged = fit(tmp_path / "each", replay.Net(OPTIMIZERS["adamw"]), online={"candidates": of_each})
    assert ragged.manifest["num_pairs"] == 6
    for query, ids in of_each.items():
        for kind in whole.kinds:
            expected = dict(zip(whole.example_ids.tolist(), whole.scores(query, kind), strict=True))
            found = dict(zip(one_list.example_ids.tolist(), one_list.scores(query, kind), strict=True))
            assert found == {**{example: expected[example] for example in some}, 999: 0}
            own = ragged.scores(query, kind)
            assert {int(i): v for i, v in zip(ragged.example_ids, own, strict=True) if not np.isnan(v)} == {
                example: expected[example] for example in ids
            }
        top, _ = ragged.top(query, 10, "dot")
        assert sorted(top.tolist()) == ids


class Learns(replay.Net):
    def learned(self, batch: dict[str, Tensor]) -> Tensor:
        return self.example_losses(batch) < 0.2


@pytest.mark.parametrize("momentum", ["eventual", "exact"])
@pytest.mark.parametrize("integration", ["left", "trapezoid"])
def test_parts_add_up_to_the_score(momentum: Any, integration: Any, tmp_path: Path) -> None:
    online = {
        "breakdown": ("layer", "epoch", "learned"), "momentum": momentum, "integration": integration,
        "refresh_every_n_steps": 3,
    }  # fmt: skip
    store = fit(tmp_path, Learns(lambda p: torch.optim.AdamW(p, lr=0.02)), online=online, max_epochs=6)
    assert store.breakdown["layer"] == ["net.0", "net.1", "net.3", "table"] or len(store.breakdown["layer"]) == 4
    assert store.breakdown["epoch"] == [str(epoch) for epoch in range(6)]
    assert store.ledger is not None
    assert (store.ledger.learned_steps() > 0).any()
    for kind in store.kinds:
        for axis in ("layer", "epoch", "learned"):
            for query in store.query_ids:
                parts = store.parts(query, axis, kind)
                whole = store.scores(query, kind)
                np.testing.assert_allclose(sum(parts.values()), whole, rtol=1e-9, atol=1e-12 * np.abs(whole).max())
    with pytest.raises(ValueError, match=r"expected one of the breakdowns .*, found 'head'"):
        store.parts(1, "head")


@pytest.mark.parametrize("integration", ["left", "trapezoid"])
def test_queries_that_come_later_are_traced_from_then_on(integration: Any, tmp_path: Path) -> None:
    later = [{**row, "query_id": 100 + row["query_id"]} for row in ASKED[:2]]
    online = {"integration": integration, "breakdown": ("epoch",), "momentum": "exact"}
    whole = fit(tmp_path / "whole", replay.Net(OPTIMIZERS["adamw"]), online=online)
    store = fit(
        tmp_path / "later", replay.Net(OPTIMIZERS["adamw"]), callbacks=[AddQueries(later)], online=online
    )  # fmt: skip
    assert store.query_ids.tolist() == [1, 8, 15, 101, 108]
    assert store.manifest["query_first_steps"] == {"101": 4, "108": 4}
    for query in (1, 8, 15):
        np.testing.assert_allclose(store.scores(query, "update"), whole.scores(query, "update"), rtol=1e-9)
    for query in (1, 8):
        parts, expected = store.parts(100 + query, "epoch", "dot"), whole.parts(query, "epoch", "dot")
        np.testing.assert_allclose(parts["1"], expected["1"], rtol=1e-9)
        assert not parts["0"].any()
    assert store.manifest["ledger"]["worst_imbalance"] < 1e-9


def test_staleness_is_measured(tmp_path: Path) -> None:
    online = {"staleness_every": 2, "refresh_every_n_steps": 2}
    module = replay.Net(lambda p: torch.optim.AdamW(p, lr=0.05))
    store = fit(tmp_path, module, DataLoader(EXAMPLES, batch_size=4), online, max_epochs=5)  # type: ignore[arg-type]
    measured = store.manifest["staleness"]
    assert list(measured) == ["2", "4"]
    assert all(-1 <= value <= 1 for value in measured.values())
    assert store.manifest["refreshes"] == [0, 2, 4, 6, 8, 10]
