"""Training is what it is without a callback, whatever a step does: schedules, hooks before it, its own signature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import own_parts
from helpers.left_alone import Case, after_training, hold_as_without, online, same
from helpers.own_parts import CLASSES, QUERIES, RATE, WIDTH, Own, batches, losses, mean_loss, mlp


def scheduled() -> Own:
    def optimize(module: Any) -> Any:
        optimizer = torch.optim.Adam(module.parameters(), lr=RATE)
        schedules = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]
        return [optimizer], [{"scheduler": one, "interval": "step"} for one in schedules]

    return Own(mean_loss, optimize, net=mlp())


class ByHand(Own):
    """Two optimizers and two losses, with schedules, clipping, and weights switched off for a moment."""

    def __init__(self) -> None:
        super().__init__(mean_loss, net=mlp(), judge=mlp(1))
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        self.toggle_optimizer(first)
        loss = mean_loss(self, batch) + self.judge(batch["x"]).square().mean()
        first.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(first, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        first.step()
        self.untoggle_optimizer(first)
        second.zero_grad()
        self.manual_backward(F.cross_entropy(self.judge(batch["x"] + 0.1 * torch.rand_like(batch["x"])), batch["y"]))
        second.step()
        self.lr_schedulers().step()

    def configure_optimizers(self) -> Any:
        first = torch.optim.SGD(self.net.parameters(), lr=RATE, momentum=0.9)
        second = torch.optim.Adam(self.judge.parameters(), lr=RATE)
        return [first, second], [torch.optim.lr_scheduler.ExponentialLR(first, 0.9)]


class SetsRates(Own):
    """Changes the learning rate within the step, little by little."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        for group in self.optimizers().param_groups:
            group["lr"] *= 0.9
            group["note"] = [*group.get("note", []), batch_idx]
        return mean_loss(self, batch)


class OwnSchedule(Own):
    """Steps a schedule that Lightning knows nothing of."""

    kept = ("schedule",)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.schedule.step()
        return mean_loss(self, batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=RATE, momentum=0.1)
        self.schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=4)
        return optimizer


class Prepares(Own):
    """What the step needs is made by the hook before it, which skips a batch."""

    kept = ("noted",)

    def __init__(self) -> None:
        super().__init__(mean_loss, net=mlp())
        self.noted: list[int] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        self.scale = 1 + torch.rand(())
        self.current = batch
        self.noted.append(batch_idx)
        return -1 if batch_idx == 1 else None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert batch is self.current
        return mean_loss(self, batch) * self.scale


class Takes(Own):
    """Takes things out of the batch, and writes to it; a layer runs later for the first time."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch.pop("example_id")
        x, y = batch.pop("x"), batch.pop("y")
        x.mul_(2)
        logits = self.net(x)
        if batch_idx >= 1:
            logits = logits + self.late(x)
        return F.cross_entropy(logits, y)


# Signatures of steps


class OtherNames(Own):
    def training_step(self, data: Any, i: int) -> Tensor:
        return self.step(self, data) * (1 + 0.1 * i)


class AnyArguments(Own):
    def training_step(self, *args: Any) -> Tensor:
        return self.step(self, args[0]) * (1 + 0.1 * args[1])


class OnlyTheBatch(Own):
    def training_step(self, data: Any) -> Tensor:
        return self.step(self, data)


class PositionalOnly(Own):
    def training_step(self, data: Any, batch_idx: int, /) -> Tensor:
        return self.step(self, data) * (1 + 0.1 * batch_idx)


CASES = {
    "schedule": Case(scheduled, settings={"max_epochs": 2}),
    "by hand": Case(ByHand, no_index=True),
    "rates within the step": Case(lambda: SetsRates(mean_loss, net=mlp()), lambda: batches(5)),
    "a schedule of its own": Case(lambda: OwnSchedule(mean_loss, net=mlp()), lambda: batches(5)),
    "prepared by a hook": Case(Prepares, lambda: batches(4)),
    "takes from the batch": Case(lambda: Takes(mean_loss, net=mlp(), late=nn.Linear(WIDTH, CLASSES))),
    "other names": Case(lambda: OtherNames(mean_loss, net=mlp())),
    "any arguments": Case(lambda: AnyArguments(mean_loss, net=mlp())),
    "only the batch": Case(lambda: OnlyTheBatch(mean_loss, net=mlp())),
    "positional only": Case(lambda: PositionalOnly(mean_loss, net=mlp())),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_everything_is_as_without(case: Case, tmp_path: Path) -> None:
    hold_as_without(case, tmp_path)


def test_losses_of_queries_may_do_with_their_batch_as_they_like(tmp_path: Path) -> None:
    def taking(module: Any, batch: Any) -> Tensor:
        batch.pop("query_id")
        return losses(module, {"x": batch.pop("x").mul_(2), "y": batch.pop("y")})

    def leaving(module: Any, batch: Any) -> Tensor:
        return losses(module, {**batch, "x": 2 * batch["x"]})

    stores = [
        own_parts.traced(Own(mean_loss, net=mlp()), batches(), tmp_path / name, QUERIES, query_losses)
        for name, query_losses in (("taking", taking), ("leaving", leaving))
    ]
    assert torch.equal(*map(own_parts.found, stores))


class NeedsACallback(Own):
    """Needs something that a callback gives it before each batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return mean_loss(self, batch) * self.scale


class Gives(pl.Callback):
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.scale = 1.0 + batch_idx


def test_a_step_that_another_callback_prepares_is_told_the_order(tmp_path: Path) -> None:
    case = Case(lambda: NeedsACallback(mean_loss, net=mlp()))
    with pytest.raises(AttributeError, match="scale") as raised:
        after_training(case, tmp_path, online(case, tmp_path / "first"), Gives())
    assert "put this one last: Trainer(callbacks=[..., this])" in raised.value.__notes__[0]
    alone = after_training(case, tmp_path, Gives())
    assert same(alone, after_training(case, tmp_path, Gives(), online(case, tmp_path / "last")))
