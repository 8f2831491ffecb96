"""Training is what it is without a callback, and so is all that a module keeps: state, hooks, metrics, generators."""

from __future__ import annotations

import copy
import itertools
import random
from collections import Counter, OrderedDict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.left_alone import Case, Endless, Meter, after_training, hold_as_without, online, same
from helpers.own_parts import CLASSES, RATE, WIDTH, Own, batches, mean_loss, mlp


class Contrast(Own):
    """A queue of keys, a pointer, and a second encoder that follows the first, as MoCo has them."""

    kept = ("hidden",)

    def __init__(self) -> None:
        super().__init__(mean_loss, net=mlp())
        self.follower = mlp(1).double().requires_grad_(False)
        self.hidden = [mlp(2).double()]  # no submodule
        self.register_buffer("queue", torch.zeros(6, CLASSES).double())
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            for follower in (self.follower, self.hidden[0]):
                for old, new in zip(follower.parameters(), self.net.parameters(), strict=True):
                    old.mul_(0.9).add_(0.1 * new)
            keys = self.follower(batch["x"])
            start = int(self.pointer)
            self.queue[[(start + i) % 6 for i in range(4)]] = keys
            self.pointer = (self.pointer + 4) % 6
        logits = torch.cat([self.net(batch["x"]), self.net(batch["x"]) @ self.queue.clone().T], 1)
        return F.cross_entropy(logits, batch["y"])


class Keeps(Own):
    """Everything that one keeps on a module, all of which tells in the loss."""

    kept = (
        "random", "old_random", "numpy_random", "generator", "array", "queue", "cycle", "rows", "endless", "meter",
        "counts", "order", "seen", "notes", "text", "optional",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__(mean_loss, net=mlp())
        self.random, self.generator = random.Random(1), torch.Generator().manual_seed(2)
        self.numpy_random, self.old_random = np.random.default_rng(3), np.random.RandomState(4)
        self.array, self.queue = np.zeros(3), deque([1.0], maxlen=3)
        self.cycle, self.rows, self.endless = itertools.cycle([1.0, 2.0, 3.0]), iter([0.1] * 50), Endless()
        self.meter, self.counts, self.order = Meter(), Counter(), OrderedDict(a=0, b=1)
        self.seen: set[int] = set()
        self.notes: dict[str, Any] = {"history": [], "queue": deque(maxlen=2), "tensor": torch.zeros(2)}
        self.text, self.optional = "", None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        drawn = [
            self.random.random(), self.old_random.rand(), self.numpy_random.random(), next(self.cycle), next(self.rows),
            float(torch.rand((), generator=self.generator)), float(next(self.endless)), float(sum(self.queue)),
            float(self.array.sum()), len(self.counts), len(self.seen), len(self.notes["history"]), self.meter.count,
            random.random(), float(np.random.rand()), float(torch.rand(())),
        ]  # fmt: skip
        self.array[:] += 1
        self.queue.append(drawn[0])
        self.meter.update(drawn[1])
        self.counts[len(self.counts)] += 1
        self.order.move_to_end("a" if len(self.seen) % 2 else "b")
        self.seen.add(len(self.seen))
        self.notes["history"].append(batch["x"].sum())
        self.notes["queue"].append(1)
        self.notes["tensor"] += 1
        self.notes[f"step {len(self.seen)}"] = drawn
        self.text += "."
        self.optional = self.optional or batch_idx
        return mean_loss(self, batch) * (1 + 0.01 * sum(drawn))


class Lazy(Own):
    """Makes a buffer and a layer when it is first needed."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if not hasattr(self, "frozen"):
            self.frozen = nn.Linear(WIDTH, WIDTH).double().requires_grad_(False)
            self.register_buffer("offset", torch.rand(WIDTH).double())
        return mean_loss(self, {**batch, "x": self.frozen(batch["x"]) + self.offset})


class Hooked(Own):
    """Hooks of the user's, which note, and change what a layer returns."""

    kept = ("noted",)

    def __init__(self) -> None:
        super().__init__(mean_loss, net=mlp())
        self.noted: list[Tensor] = []
        self.net[0].register_forward_pre_hook(lambda layer, args: (args[0] + 0.01 * len(self.noted),))
        self.net[0].register_forward_hook(self._note)

    def _note(self, layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        if layer.training:
            self.noted.append(output.detach().mean())
        return 2 * output


class Logs(Own):
    """Metrics that are logged, and a schedule that goes by them."""

    def __init__(self) -> None:
        super().__init__(mean_loss, net=mlp())
        self.mean, self.accuracy = torchmetrics.MeanMetric(), torchmetrics.Accuracy("multiclass", num_classes=CLASSES)
        self.values = torchmetrics.CatMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = mean_loss(self, batch)
        self.mean.update(loss.detach())
        self.values.update(loss.detach())
        self.accuracy(self.net(batch["x"]), batch["y"])
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"mean": self.mean, "accuracy": self.accuracy}, on_epoch=True)
        return {"loss": loss * (1 + 0.01 * self.mean.compute()), "other": 1}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "loss"}}


class Watched(Own):
    """Gradients of weights are noted by hooks, which leave them as they are."""

    kept = ("noted",)

    def __init__(self) -> None:
        super().__init__(mean_loss, net=mlp())
        self.noted: list[Any] = []
        self.net[0].weight.register_hook(lambda grad: self.noted.append(float(grad.sum())))
        self.net[2].weight.register_post_accumulate_grad_hook(lambda p: self.noted.append(float(p.grad.sum())))


# Losses of queries that draw and keep


class Draws(Own):
    kept = ("generator", "asked")

    def __init__(self) -> None:
        super().__init__(mean_loss, net=mlp())
        self.generator, self.asked = torch.Generator().manual_seed(0), []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return mean_loss(self, batch) * (1 + torch.rand((), generator=self.generator) + len(self.asked))


def losses_that_draw(module: Any, batch: Any) -> Tensor:
    """With dropout left on, a generator of the module's own, and a note."""
    module.asked.append(1)
    noise = torch.rand(WIDTH, generator=module.generator).double() + random.random() + np.random.rand()
    x = F.dropout(batch["x"] + noise, 0.5, training=True)
    return F.cross_entropy(module.net(x), batch["y"], reduction="none")


CASES = {
    "queue and followers": Case(Contrast),
    "keeps everything": Case(Keeps, lambda: batches(5)),
    "lazy": Case(lambda: Lazy(mean_loss, net=mlp())),
    "hooks": Case(Hooked),
    "metrics and plateau": Case(Logs, lambda: batches(5), settings={"max_epochs": 3}),
    "watched gradients": Case(Watched),
    "losses that draw": Case(Draws, losses=losses_that_draw),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_everything_is_as_without(case: Case, tmp_path: Path) -> None:
    hold_as_without(case, tmp_path)


class DrawsFrom(Own):
    """Draws from an iterator that can't be copied."""

    def __init__(self, iterator: Any) -> None:
        super().__init__(mean_loss, net=mlp())
        self.notes = {"noise": iterator}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return mean_loss(self, batch) * (1 + float(next(self.notes["noise"])))


def test_a_generator_that_is_drawn_from_is_refused_before_training(tmp_path: Path) -> None:
    made = DrawsFrom(0.1 * i for i in range(100))
    before = copy.deepcopy(dict(made.named_parameters()))
    case = Case(lambda: made)
    with pytest.raises(ValueError, match=r"draws from 'noise', a generator .* keep itertools.cycle\(list\)"):
        after_training(case, tmp_path, online(case, tmp_path))
    assert same(before, dict(made.named_parameters()))
    assert next(made.notes["noise"]) == 0.0  # nothing is gone
    remedied = Case(lambda: DrawsFrom(itertools.cycle([0.1, 0.2, 0.3])))
    alone = after_training(remedied, tmp_path)
    assert same(alone, after_training(remedied, tmp_path, online(remedied, tmp_path / "again")))
