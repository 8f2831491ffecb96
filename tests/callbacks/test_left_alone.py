"""Training is what it is without a callback, to the last bit: weights, optimizers, random state, all that is kept.

Each module is trained by itself and with each callback, and everything is compared.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from ftrace.callbacks import CheckpointSnapshots, GradientIndexWriter, OnlineTracIn
from ftrace.scores import ScoreStore
from helpers import own_parts
from helpers.own_parts import CLASSES, QUERIES, RATE, WIDTH, Own, batches, losses, mean_loss, mlp

LENGTH = 3


@dataclass(frozen=True)
class Case:
    """A module and how it is trained.

    Args:
        make: Makes the module; what it is to keep is named in its ``kept``.
        parameters: What the callbacks see.
        no_index: Whether a gradient index can't be written in such a loop.
    """

    make: Callable[[], Any]
    data: Callable[[], Any] = batches
    queries: Any = field(default_factory=lambda: QUERIES)
    losses: Any = losses
    settings: dict[str, Any] = field(default_factory=dict)
    parameters: tuple[str, ...] = ("*",)
    no_index: bool = False


# What all examples share


def sequences(key: str = "example_id", count: int = 3, size: int = 4) -> list[Any]:
    generator = torch.Generator().manual_seed(5)
    return [
        {**batch, "x": torch.randn(size, LENGTH, WIDTH, generator=generator).double()}
        for batch in batches(count, size, key)
    ]


SEQUENCE_QUERIES = sequences("query_id", 1, 3)


class Shares(nn.Module):
    """A table that is looked up once for all examples, and meets them in some way."""

    def __init__(self, meet: Callable[[Tensor, Tensor], Tensor], rows: int = LENGTH, ndim: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.inner, self.head = (
            nn.Embedding(rows, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, CLASSES),
        )
        self.meet, self.rows, self.ndim = meet, rows, ndim

    def forward(self, x: Tensor) -> Tensor:
        numbers = torch.arange(self.rows)
        own = self.table(numbers if self.ndim == 1 else numbers[None])
        met = self.meet(torch.tanh(self.inner(x)), own)
        return self.head(torch.tanh(met).mean(1)) if met.ndim == 3 else met[:, :CLASSES]


def plain(h: Tensor) -> Tensor:
    return h.mean(1)


MEETINGS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "added": (lambda h, p: h + p, 1),
    "added, one row": (lambda h, p: h + p, 2),
    "repeated": (lambda h, p: torch.cat([p.repeat(len(h), 1, 1), h], 1), 1),
    "expanded": (lambda h, p: torch.cat([p.expand(len(h), -1, -1), h], 1), 2),
    "concatenated": (lambda h, p: torch.cat([torch.stack([p] * len(h)), h], 1), 1),
    "bmm": (lambda h, p: (plain(h)[:, None] @ p.transpose(1, 2))[:, 0], 2),
    "view": (lambda h, p: plain(h) @ p.view(-1, WIDTH).T, 2),
    "flatten": (lambda h, p: plain(h) @ p.flatten(0, 1).T, 2),
    "einsum": (lambda h, p: torch.einsum("bd,ncd->bc", plain(h), p), 2),
    "squeeze": (lambda h, p: plain(h) @ p.squeeze(0).T, 2),
    "index": (lambda h, p: plain(h) @ p[0].T, 2),
    "cdist": (lambda h, p: -torch.cdist(plain(h)[None], p)[0], 2),
    "mean over it": (lambda h, p: plain(h) * p.mean(0), 1),
    "sum over it": (lambda h, p: plain(h) * p.sum(1), 2),
}


def shares(name: str) -> Case:
    meet, ndim = MEETINGS[name]
    return Case(lambda: Own(mean_loss, net=Shares(meet, ndim=ndim)), sequences, SEQUENCE_QUERIES)


def penalises_rows() -> Own:
    def step(module: Any, batch: Any) -> Tensor:
        return mean_loss(module, batch) + 0.1 * module.net.table(torch.arange(2)).square().sum()

    return Own(step, net=Shares(MEETINGS["added"][0]))


# Passes that draw, keep statistics, or have odd batches


def with_dropout() -> Own:
    torch.manual_seed(0)
    return Own(mean_loss, net=nn.Sequential(mlp(), nn.Dropout(0.5), nn.Linear(CLASSES, CLASSES)))


def batch_norm_in_eval() -> Own:
    module = Own(mean_loss, net=nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), mlp()))
    module.net[1].eval()
    return module


def normalised(how: Callable[[nn.Module], nn.Module]) -> Callable[[], Own]:
    def make() -> Own:
        torch.manual_seed(0)
        return Own(mean_loss, net=nn.Sequential(how(nn.Linear(WIDTH, WIDTH).double()), mlp()))

    return make


def packed(key: str = "example_id", count: int = 3) -> list[Any]:
    """One row of several texts of varying length."""
    generator = torch.Generator().manual_seed(6)
    return [
        {
            "x": torch.randn(1, 7 + i, WIDTH, generator=generator).double(),
            "y": torch.randint(CLASSES, (1, 7 + i), generator=generator),
            key: torch.tensor([i]),
        }
        for i in range(count)
    ]


def packed_losses(module: Any, batch: Any) -> Tensor:
    return F.cross_entropy(module.net(batch["x"]).transpose(1, 2), batch["y"], reduction="none").sum(1)


# What a module keeps


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


class Meter:
    def __init__(self) -> None:
        self.total, self.count, self.parts = 0.0, 0, [torch.zeros(1)]

    def update(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1
        self.parts[0] += 1
        self.parts.append(torch.tensor([value]))


class Endless:
    """An iterator of the user's own."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.position += 1
        return self.position


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


class Watched(Own):
    """Gradients of weights are noted by hooks, which leave them as they are."""

    kept = ("noted",)

    def __init__(self) -> None:
        super().__init__(mean_loss, net=mlp())
        self.noted: list[Any] = []
        self.net[0].weight.register_hook(lambda grad: self.noted.append(float(grad.sum())))
        self.net[2].weight.register_post_accumulate_grad_hook(lambda p: self.noted.append(float(p.grad.sum())))


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
    **{f"shared, {name}": shares(name) for name in MEETINGS},
    "penalty on looked-up rows": Case(
        penalises_rows, sequences, SEQUENCE_QUERIES, parameters=("*", "!net.table.weight")
    ),
    "dropout": Case(with_dropout),
    "dropout, accumulated and clipped": Case(
        with_dropout,
        lambda: batches(5),
        settings={"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "max_epochs": 2},
    ),
    "batch norm in eval": Case(batch_norm_in_eval),
    "spectral norm": Case(normalised(parametrizations.spectral_norm)),
    "weight norm": Case(normalised(parametrizations.weight_norm)),
    "old spectral norm": Case(normalised(nn.utils.spectral_norm), parameters=("net.1.*",)),
    "packed": Case(
        lambda: Own(lambda m, b: packed_losses(m, b).sum(), net=mlp()), packed, packed("query_id", 2), packed_losses
    ),
    "queue and followers": Case(Contrast),
    "keeps everything": Case(Keeps, lambda: batches(5)),
    "lazy": Case(lambda: Lazy(mean_loss, net=mlp())),
    "hooks": Case(Hooked),
    "metrics and plateau": Case(Logs, lambda: batches(5), settings={"max_epochs": 3}),
    "schedule": Case(scheduled, settings={"max_epochs": 2}),
    "by hand": Case(ByHand, no_index=True),
    "rates within the step": Case(lambda: SetsRates(mean_loss, net=mlp()), lambda: batches(5)),
    "a schedule of its own": Case(lambda: OwnSchedule(mean_loss, net=mlp()), lambda: batches(5)),
    "prepared by a hook": Case(Prepares, lambda: batches(4)),
    "takes from the batch": Case(lambda: Takes(mean_loss, net=mlp(), late=nn.Linear(WIDTH, CLASSES))),
    "watched gradients": Case(Watched),
    "other names": Case(lambda: OtherNames(mean_loss, net=mlp())),
    "any arguments": Case(lambda: AnyArguments(mean_loss, net=mlp())),
    "only the batch": Case(lambda: OnlyTheBatch(mean_loss, net=mlp())),
    "positional only": Case(lambda: PositionalOnly(mean_loss, net=mlp())),
    "losses that draw": Case(Draws, losses=losses_that_draw),
}


def online(case: Case, folder: Path) -> pl.Callback:
    asked = own_parts.loader(case.queries)
    return OnlineTracIn(asked, folder / "online", case.losses, parameters=case.parameters, refresh_every_n_steps=2)


def index(case: Case, folder: Path) -> pl.Callback:
    return GradientIndexWriter(
        folder / "index",
        parameters=case.parameters,
        layout="parameter",
        projection_side=2,
        preconditioner="none",
        dtype="float64",
    )


def snapshots(case: Case, folder: Path) -> pl.Callback:
    return CheckpointSnapshots(folder / "snapshots", every_n_steps=1)


def plain_value(value: Any) -> Any:
    """Something of plain lists, dictionaries and tensors that tells whether two kept things are the same."""
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.RandomState):
        return [plain_value(part) for part in value.get_state()]
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(np.float64))
    if isinstance(value, torch.optim.lr_scheduler.LRScheduler):
        return plain_value(value.state_dict())
    if isinstance(value, nn.Module):
        return dict(value.state_dict())
    if isinstance(value, dict):
        return [(key, plain_value(own)) for key, own in value.items()]
    if isinstance(value, Meter | Endless):
        return plain_value(vars(value))
    if isinstance(value, list | tuple | deque):
        return [plain_value(own) for own in value]
    if hasattr(value, "__next__"):
        return list(itertools.islice(copy.copy(value), 5))
    return value


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def after_training(case: Case, folder: Path, *callbacks: pl.Callback) -> dict[str, Any]:
    """All that there is when training has ended."""
    pl.seed_everything(7, verbose=False)
    module = case.make()
    trainer = own_parts.trainer(folder, callbacks, **case.settings)
    trainer.fit(module, own_parts.loader(case.data()))
    hooks = [
        (name, len(one._forward_hooks), len(one._forward_pre_hooks), len(one._backward_hooks), one.training)
        for name, one in module.named_modules()
    ]
    return {
        "weights and buffers": {**dict(module.named_parameters()), **dict(module.named_buffers())},
        "gradients": [parameter.grad for parameter in module.parameters() if parameter.grad is not None],
        "trainable": [parameter.requires_grad for parameter in module.parameters()],
        "modules": hooks,
        "attributes": sorted(set(vars(module)) - {"_forward_hooks_always_called"}),
        "optimizers": [plain_value(optimizer.state_dict()) for optimizer in trainer.optimizers],
        "schedules": [plain_value(one.scheduler.state_dict()) for one in trainer.lr_scheduler_configs],
        "random": [torch.get_rng_state(), plain_value(np.random.get_state()), random.getstate()],
        "logged": dict(trainer.callback_metrics),
        "kept": {name: plain_value(getattr(module, name)) for name in getattr(module, "kept", ())},
    }


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_everything_is_as_without(case: Case, tmp_path: Path) -> None:
    alone = after_training(case, tmp_path)
    for make in (online, index, snapshots):
        if make is index and case.no_index:
            continue
        with_callback = after_training(case, tmp_path, make(case, tmp_path))
        for name, value in alone.items():
            assert same(value, with_callback[name]), (make.__name__, name)
    store = ScoreStore.open(tmp_path / "online")
    assert store.manifest["complete"]
    assert not store.manifest["rows"]["left_out"]


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
