"""`trace(..., fabric=...)` misused, and strategies and precisions that aren't supported: refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import Precision
from lightning.fabric.strategies import DataParallelStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, default_collate

from ftrace.online import SelfCheckError, trace
from ftrace.scores import ScoreStore
from helpers.llama_loops import ASKED, BATCHES, Llama, losses, mean_loss, queries

BATCH = default_collate(BATCHES[0])


def cpu(**settings: Any) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, **settings)


def traced(folder: Path, set_up: Fabric | None = None, **settings: Any) -> tuple[Any, Any, Any, Fabric]:
    fabric = cpu() if set_up is None else set_up
    net = Llama(dtype=torch.float32)
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    given: dict[str, Any] = {"model": model, "optimizer": optimizer, "fabric": fabric, "queries": queries()}
    given |= {"training_loss": mean_loss, "query_losses": losses, "output_dir": folder / "s", **settings}
    return trace(**given), model, optimizer, fabric


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fabric": None}, r"expected fabric=fabric for what fabric\.setup has returned, found a _FabricModule"),
        ({"fabric": None, "model": nn.Linear(1, 1)}, r"found a FabricSGD without it\. Pass the Fabric, too"),
        ({"fabric": 3}, r"fabric: expected a lightning\.fabric\.Fabric, found int"),
        (
            {"model": nn.Linear(1, 1)},
            r"expected the one that fabric\.setup\(model, optimizer\) has returned, found Lin",
        ),
        ({"precision": "bf16-mixed"}, r"precision: expected none beside fabric=.*found 'bf16-mixed'\. Leave it out"),
        ({"scaler": torch.amp.GradScaler("cpu")}, r"scaler: expected none beside fabric="),
    ],
)
def test_what_is_not_of_fabric_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        traced(tmp_path, **settings)


class Eighth(Precision):
    precision = "transformer-engine"  # type: ignore[assignment]


class TensorParallel(ModelParallelStrategy):
    device_mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 2)}  # type: ignore[assignment]  # noqa: RUF012


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda fabric: setattr(fabric, "_strategy", FSDPStrategy()),
            "DDP or ModelParallelStr.* found FSDPStrategy",
        ),
        (lambda fabric: setattr(fabric, "_strategy", TensorParallel(lambda m, _: m)), r"Set .*tensor_parallel_size=1"),
        (lambda fabric: setattr(fabric, "_strategy", DataParallelStrategy()), "found DataParallelStrategy"),
        (lambda fabric: setattr(fabric._strategy, "precision", Eighth()), "expected a precision among .* found Eighth"),
    ],
)
def test_strategies_and_precisions_are_refused_by_name(
    change: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    fabric: Any = cpu()
    net = Llama(dtype=torch.float32)
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    change(fabric)
    with pytest.raises(ValueError, match=message):
        trace(model, optimizer, mean_loss, fabric=fabric, queries=queries(), query_losses=losses)


@pytest.mark.parametrize(
    ("misuse", "error", "message"),
    [
        (lambda run, model, optimizer, fabric: fabric.backward(run.loss(BATCH)), ValueError, r"calls fabric\.backward"),
        (
            lambda run, model, optimizer, fabric: (
                run.backward(run.loss(BATCH)), fabric.clip_gradients(model, optimizer, clip_val=1e-4)
            ),
            SelfCheckError,
            "after the backward pass by more than a factor, as clipping by value does",
        ),
        (
            lambda run, model, optimizer, fabric: optimizer.step(lambda: run.loss(BATCH)),
            ValueError,
            "Call the closure before the step",
        ),
    ],
)  # fmt: skip
def test_misuse_is_an_error_in_fabrics_words(
    misuse: Callable[..., Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    run, model, optimizer, fabric = traced(tmp_path)

    def train() -> None:
        with run:
            misuse(run, model, optimizer, fabric)
            optimizer.step()

    with pytest.raises(error, match=message):
        train()


def test_autocast_around_the_loss_is_refused_and_in_it_is_known(tmp_path: Path) -> None:
    run, _, _, fabric = traced(tmp_path, cpu(precision="bf16-mixed"))
    with run, fabric.autocast(), pytest.raises(ValueError, match=r"call fabric\.autocast\(\) in training_loss"):
        run.loss(BATCH)

    def under_autocast(model: Any, batch: Any) -> Any:
        with fabric.autocast():
            return losses(model, batch)

    settings: dict[str, Any] = {"training_loss": lambda model, batch: under_autocast(model, batch).mean()}
    run, _, optimizer, fabric = traced(
        tmp_path / "t", cpu(precision="bf16-mixed"), query_losses=under_autocast, **settings
    )
    with run:
        run.backward(run.loss(BATCH))
        optimizer.step()
    assert ScoreStore.open(tmp_path / "t" / "s").manifest["self_check"] == {"failures": []}


def test_queries_may_be_set_up_but_not_shared_out(tmp_path: Path) -> None:
    fabric = cpu()
    run, _, optimizer, _ = traced(tmp_path, fabric, queries=fabric.setup_dataloaders(queries()))
    with run:
        run.backward(run.loss(BATCH))
        optimizer.step()
    assert len(ScoreStore.open(tmp_path / "s").query_ids) == len(ASKED)
    sampler: Any = DistributedSampler(ASKED, num_replicas=2, rank=0)  # type: ignore[arg-type, var-annotated]
    run, *_ = traced(tmp_path / "t", fabric, queries=DataLoader(ASKED, sampler=sampler))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="all of them in each process, found a loader with DistributedSampler"), run:
        pass


def test_states_are_loaded_before_the_run_begins(tmp_path: Path) -> None:
    run, *_ = traced(tmp_path)
    with pytest.raises(ValueError, match=r"expected what run\.state_dict\(\) has returned, found keys \['model'\]"):
        run.load_state_dict({"model": 1})
    with run, pytest.raises(RuntimeError, match="expected a call before `with run:`"):
        run.load_state_dict({"global_step": 1})
