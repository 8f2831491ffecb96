"""Scores of the kind ``learning`` of losses that are no -log of a probability: refused, or in doubt, never silent."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ftrace.online import trace
from ftrace.scores import ScoreStore
from helpers import own_parts


def margins(model: Any, batch: Any) -> Tensor:
    """How much less likely the right class is than the next one: of either sign."""
    logits = model(batch["x"])
    right = batch["y"][:, None]
    return (logits.gather(1, (right + 1) % own_parts.CLASSES) - logits.gather(1, right)).squeeze(1)


def preferences(model: Any, batch: Any) -> Tensor:
    return -F.logsigmoid(-margins(model, batch))


def fit(
    folder: Path, losses: Any, lift: float = 0.0, steps: int = 6, saved: list[Any] | None = None, **settings: Any
) -> ScoreStore:
    """Train the right classes of the examples, which are the queries, too; margins are lifted at first.

    Args:
        saved: The state at the end is appended.
    """
    torch.manual_seed(0)
    model = own_parts.mlp().double()
    data = [batch | {"y": torch.zeros(4, dtype=torch.long)} for batch in own_parts.batches(steps)]
    with torch.no_grad():
        model[2].bias[1] += lift
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    asked = [{"x": data[0]["x"][i], "y": data[0]["y"][i], "query_id": 10 + i} for i in range(3)]
    settings = {"scores": ("learning", "dot"), "projection_side": 2, "refresh_every_n_steps": 1} | settings

    def loss(model: Any, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch["x"]), batch["y"])

    run = trace(
        model, optimizer, loss, queries=DataLoader(asked, batch_size=2), query_losses=losses, output_dir=folder,
        precision="64-true", **settings,
    )  # fmt: skip
    with run:
        for batch in data:
            optimizer.zero_grad()
            run.backward(run.loss(batch))
            optimizer.step()
        if saved is not None:
            saved.append(run.state_dict())
    return ScoreStore.open(folder)


def test_losses_below_0_are_refused_before_training(tmp_path: Path) -> None:
    message = r"expects losses of at least 0, found -.* at step 0.*Rank by `whitened`, or .*-logsigmoid\(m\)"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path / "s", margins)


@pytest.mark.parametrize("ledger", [True, False])
def test_losses_that_fall_below_0_put_learning_in_doubt(tmp_path: Path, ledger: bool) -> None:
    with pytest.warns(UserWarning, match="mean nothing") as caught:
        store = fit(tmp_path / "s", margins, lift=3.0, ledger=ledger)
    said = [str(warning.message) for warning in caught if "mean nothing" in str(warning.message)]
    assert len(said) == 1, "once"
    assert "numbers below 0 for" in said[0]
    assert "no -log of a probability" in store.doubts("learning")[0]
    assert store.doubts("dot") == []


def test_a_resumed_run_remembers_it(tmp_path: Path) -> None:
    is_margin, saved = [True], []

    def losses(model: Any, batch: Any) -> Tensor:
        return (margins if is_margin else preferences)(model, batch)

    with pytest.warns(UserWarning, match="mean nothing"):
        fit(tmp_path / "s", losses, lift=3.0, saved=saved)
    is_margin.clear()
    with pytest.warns(UserWarning, match="in doubt: losses were below 0 for 3 of 3 queries"):
        store = fit(tmp_path / "s", losses, steps=2, state=saved[0])
    assert store.manifest["steps"] == 8
    assert "no -log of a probability" in store.doubts("learning")[0]


@pytest.mark.parametrize(
    ("losses", "kinds"),
    [(preferences, ("learning", "dot")), (margins, ("whitened", "dot"))],
    ids=["-log p", "whitened"],
)
def test_the_remedies_work(tmp_path: Path, losses: Any, kinds: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = fit(tmp_path / "s", losses, scores=kinds)
    assert store.matrix(kinds[0]).any()
    assert store.doubts(kinds[0]) == []


def test_queries_that_were_certain_all_along_are_told_from_those_out_of_reach(tmp_path: Path) -> None:
    def losses(model: Any, batch: Any) -> Tensor:
        scale = torch.where(batch["query_id"] == 10, 1e-30, torch.where(batch["query_id"] == 11, 1e4, 1.0))
        return preferences(model, batch) * scale

    with pytest.warns(UserWarning, match="in doubt"):
        store = fit(tmp_path / "s", losses, steps=1)
    assert not store.scores(10, "learning").any()
    assert not store.scores(11, "learning").any()
    assert store.scores(12, "learning").any()
    never, always = store.doubts("learning")
    assert "1 of 3 queries. Their losses were above 170 nats" in never
    assert "1 of 3 queries. Their losses were 0 at every step" in always
