"""Loops that set gradients to zero whenever they like, while what is recorded was projected before.

With as many directions as the parameters have rows and columns, projected scores are exact, whatever balance they have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ftrace.gradients import Recording
from ftrace.online import trace
from ftrace.online.scoring.balances import EXACT_STEPS
from ftrace.online.scoring.early_products import EarlyProducts
from ftrace.scores import ScoreStore

STEPS = 10
GENERATOR = torch.Generator().manual_seed(0)
EXAMPLES = [{"x": torch.randn(3, generator=GENERATOR).double(), "example_id": i} for i in range(2 * STEPS)]
ASKED = [{"x": torch.randn(3, generator=GENERATOR).double(), "query_id": i} for i in range(3)]
BATCHES = [torch.utils.data.default_collate(EXAMPLES[i : i + 2]) for i in range(0, len(EXAMPLES), 2)]
Zero = Literal["before", "between", "after", "never"]


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["x"]).square().sum(1)


def mean_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return losses(model, batch).mean()


class Interrupt(Exception):
    pass


def interrupt(grad: Tensor) -> None:
    raise Interrupt


def train(
    folder: Path, zero: Zero | list[Zero], *, set_to_none: bool = True, interrupted: int | None = None, **settings: Any
) -> ScoreStore:
    """Train, setting gradients to zero before the forward pass, between it and the backward pass, or after the step.

    Args:
        interrupted: The batch whose backward pass is interrupted, when some gradients are there, before it is repeated.
    """
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-3)
    settings = {"scores": ("dot", "update"), "refresh_every_n_steps": 3, **settings}
    run = trace(
        model, optimizer, mean_loss, queries=ASKED, query_losses=losses, output_dir=folder, precision="64-true",
        **settings,
    )  # fmt: skip
    with run:
        for index, batch in enumerate(BATCHES):
            when = zero if isinstance(zero, str) else zero[index]
            if index == interrupted:
                handle = next(model.parameters()).register_hook(interrupt)
                with pytest.raises(Interrupt):
                    run.backward(run.loss(batch))
                handle.remove()
            if when == "before":
                optimizer.zero_grad(set_to_none=set_to_none)
            loss = run.loss(batch)
            if when == "between":
                optimizer.zero_grad(set_to_none=set_to_none)
            run.backward(loss)
            optimizer.step()
            if when == "after":
                optimizer.zero_grad(set_to_none=set_to_none)
    return ScoreStore.open(folder)


def changing(at: int, first: Zero, then: Zero) -> list[Zero]:
    return [first if step < at else then for step in range(STEPS)]


@pytest.mark.parametrize("momentum", ["eventual", "exact"])
@pytest.mark.parametrize(
    "zero",
    ["before", "between", "after", "never"]
    + [changing(at, "between", "never") for at in range(EXACT_STEPS - 1, 2 * EXACT_STEPS + 2)]
    + [changing(at, "never", "before") for at in range(EXACT_STEPS - 1, 2 * EXACT_STEPS + 2)],
    ids=lambda zero: zero if isinstance(zero, str) else f"{zero[0]}-{zero[-1]}-{zero.count(zero[0])}",
)
def test_projected_updates_are_exact_ones_whenever_gradients_are_zeroed(
    zero: Zero | list[Zero], momentum: str, tmp_path: Path
) -> None:
    exact = train(tmp_path / "exact", zero, momentum=momentum)
    projected = train(tmp_path / "projected", zero, momentum=momentum, projection_side=16, moments_tolerance=0.0)
    assert projected.manifest["ledger"]["balanced"] is True
    for kind in ("dot", "update"):
        np.testing.assert_allclose(projected.matrix(kind), exact.matrix(kind), rtol=1e-9, atol=1e-12)
        assert np.abs(exact.matrix(kind)).max() > 0


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("zero", ["between", "after"])
def test_what_a_run_scores_does_not_depend_on_when_gradients_are_zeroed(
    zero: Zero, set_to_none: bool, tmp_path: Path
) -> None:
    """Few directions, so that all balances count: they are the same ones."""
    settings: dict[str, Any] = {"scores": ("update", "learning", "cosine"), "projection_side": 2}
    before = train(tmp_path / "before", "before", **settings)
    other = train(tmp_path / "other", zero, set_to_none=set_to_none, **settings)
    for kind in settings["scores"]:
        np.testing.assert_allclose(other.matrix(kind), before.matrix(kind), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("zero", ["before", "between", "never"])
def test_nothing_is_held_unprojected_once_a_balance_is_known(
    zero: Zero, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[bool] = []
    close = Recording.close

    def noting(recording: Recording) -> None:
        if recording.was_read:
            recorded.append(recording.projections is None)
        close(recording)

    monkeypatch.setattr(Recording, "close", noting)
    train(tmp_path / "s", zero, scores=("update", "learning"), projection_side=2, self_check=False)
    of_steps = recorded[-STEPS:]  # after that of a rehearsal
    # Without zeros it is always the same gradient, whose first contributions are held unprojected.
    assert of_steps == [zero == "never" or step < EXACT_STEPS for step in range(STEPS)]


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_exact_products_are_taken_inside_the_backward_pass(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[set[str]] = []
    take = EarlyProducts.take

    def noting(products: EarlyProducts, gradients: Any) -> None:
        taken.append(set(gradients.parts))
        take(products, gradients)

    monkeypatch.setattr(EarlyProducts, "take", noting)
    train(tmp_path / "s", "between", scores=(kind,), self_check=False)
    assert taken == STEPS * [{"2.weight"}, {"0.weight"}]


@pytest.mark.parametrize("interrupted", [0, 1])
def test_an_interrupted_backward_pass_leaves_nothing_behind(interrupted: int, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", "before", scores=("dot",))
    other = train(tmp_path / "other", "before", scores=("dot",), interrupted=interrupted, shared_ids=True)
    np.testing.assert_allclose(other.matrix("dot"), whole.matrix("dot"), rtol=1e-9, atol=1e-12)
