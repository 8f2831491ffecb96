"""`ftrace.online.trace` misused: errors that say what was expected, what was found, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from ftrace.online import PlainTrace, trace
from ftrace.scores import ScoreStore

ROWS = [{"x": torch.linspace(-1, 1, 3) * (i + 1)} for i in range(4)]
BATCH = default_collate([{**row, "example_id": i} for i, row in enumerate(ROWS)])
ASKED = [{**row, "query_id": i} for i, row in enumerate(ROWS[:2])]


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["x"]).square().sum(1)


def traced(output_dir: Path, **settings: Any) -> tuple[PlainTrace, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"queries": ASKED, "optimizer": optimizer, "output_dir": output_dir, **settings}
    run = trace(model, training_loss=lambda model, batch: losses(model, batch).mean(), query_losses=losses, **settings)
    return run, optimizer


@pytest.mark.parametrize(
    "call", [lambda run: run.loss(BATCH), lambda run: run.backward(torch.ones(())), lambda run: run.add_queries(ASKED)]
)
def test_calls_before_and_after_the_with_block_are_refused(call: Callable[..., Any], tmp_path: Path) -> None:
    run, optimizer = traced(tmp_path / "s")
    with pytest.raises(RuntimeError, match="expected the training loop within `with run:`, found a call before it"):
        call(run)
    with run:
        run.backward(run.loss(BATCH))
        optimizer.step()
    with pytest.raises(RuntimeError, match="found a call after it"):
        call(run)
    with pytest.raises(RuntimeError, match="expected a run to be entered once"), run:
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda loss: loss.item(), r"found float\. Leave out \.item\(\)"),
        (lambda loss: loss.detach(), "found a tensor without a gradient"),
        (lambda loss: torch.ones((), requires_grad=True) * 2, "doesn't depend on it"),
    ],
)
def test_after_a_refused_loss_the_right_one_can_be_given(
    change: Callable[[Tensor], Any], message: str, tmp_path: Path
) -> None:
    run, optimizer = traced(tmp_path / "s")
    with run:
        loss = run.loss(BATCH)
        with pytest.raises(ValueError, match=message):
            run.backward(change(loss))
        run.backward(loss)
        optimizer.step()
    assert len(ScoreStore.open(tmp_path / "s").example_ids) == len(ROWS)


def test_a_loss_under_no_grad_is_refused(tmp_path: Path) -> None:
    run, _ = traced(tmp_path / "s")
    with run, torch.no_grad(), pytest.raises(ValueError, match=r"found shape \(\) without a gradient"):
        run.loss(BATCH)


def test_autocast_that_the_queries_know_nothing_of_is_refused_with_a_remedy(tmp_path: Path) -> None:
    run, _ = traced(tmp_path / "s")
    with run, torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="Pass precision='bf16-mixed'"):
        run.loss(BATCH)
    run, optimizer = traced(tmp_path / "t", precision="bf16-mixed")
    with run:
        with torch.autocast("cpu", torch.bfloat16):
            loss = run.loss(BATCH)
        run.backward(loss)
        optimizer.step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"state": {"model": 1, "trace": 2}}, r"expected what run\.state_dict\(\) has returned, found keys \['model'"),
        ({"state": 3}, "state: expected a mapping"),
        ({"optimizer": []}, "expected a torch.optim.Optimizer or a list of them, found \\[\\]"),
        ({"optimizer": {"a": 1}}, "optimizer: expected an Optimizer or a list \\(each an Optimizer\\), found {'a': 1}"),
    ],
)
def test_states_and_optimizers_of_another_kind_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        traced(tmp_path / "s", **settings)


@pytest.mark.parametrize("queries", [default_collate(ASKED), (row for row in ASKED)])
def test_queries_that_are_one_batch_or_a_generator_are_refused(queries: Any, tmp_path: Path) -> None:
    run, _ = traced(tmp_path / "s", queries=queries)
    with pytest.raises(ValueError, match=r"expected a DataLoader, a Dataset or a list of queries, found"), run:
        pass
