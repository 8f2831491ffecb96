"""Each refusal names a remedy that works: it is taken out of the message, carried out, and training runs to its end."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from ftrace.callbacks import GradientIndexWriter, OnlineTracIn
from ftrace.data import WithExampleIds
from ftrace.index import GradientIndex
from ftrace.scores import ScoreStore
from helpers import own_parts
from helpers.own_parts import CLASSES, QUERIES, RATE, WIDTH, Own, batches, losses, mean_loss, mlp


@dataclass(frozen=True)
class Run:
    """All that a message may want changed.

    Args:
        make: ``(**how)``: makes the module.
        how: What it is made with.
        online: The callback's arguments.
        settings: The trainer's.
    """

    make: Callable[..., Any] = lambda: Own(mean_loss, net=mlp())
    how: dict[str, Any] = field(default_factory=dict)
    data: Any = field(default_factory=batches)
    queries: Any = field(default_factory=lambda: QUERIES)
    losses: Any = losses
    online: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def go(self, folder: Path) -> ScoreStore:
        module = self.make(**self.how)
        return own_parts.traced(
            module, self.data, folder, self.queries, self.losses, self.settings, **{"ledger": True, **self.online}
        )

    def asked(self, **online: Any) -> Run:
        return replace(self, online={**self.online, **online})

    def made(self, **how: Any) -> Run:
        return replace(self, how={**self.how, **how})

    def with_ids(self, of_batch: Callable[[Any], Any]) -> Run:
        return replace(self, data=[{**one, "example_id": of_batch(one["example_id"])} for one in self.data])


def said(message: str, pattern: str) -> str:
    """The last place in a message that looks so, or the group in it."""
    places = re.findall(pattern, message)
    assert places, (pattern, message)
    return str(places[-1])


def argument(name: str) -> Callable[[Run, str], Run]:
    """Pass an argument of the callback as the message has it."""
    return lambda run, message: run.asked(**{name: eval(said(message, rf"\b{name}=(\([^)]*\)|\w+)"))})


def ids(pattern: str) -> Callable[[Run, str], Run]:
    """Make ids as the message does, which is an expression in ``ids``."""

    def carry_out(run: Run, message: str) -> Run:
        expression = said(message, pattern)
        return run.with_ids(lambda given: given if isinstance(given, list) else eval(expression, {"ids": given}))

    return carry_out


leave_out = argument("parameters")


# A layer that mixes examples, in the module and in the step


class BatchNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.norm, self.head = nn.Linear(WIDTH, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.into(x))))


def batch_normed(kind: str = "BatchNorm", mode: str = "train") -> Own:
    module = Own(mean_loss, net=BatchNormed())
    if kind != "BatchNorm":
        module.net.norm = getattr(nn, kind)(*{"GroupNorm": (1, 5), "LayerNorm": (5,)}[kind]).double()
    getattr(module.net.norm, mode)()
    return module


def into_mode(run: Run, message: str) -> Run:
    return run.made(mode=said(message, r"into (eval) mode"))


def another_norm(run: Run, message: str) -> Run:
    return run.made(kind=said(message, r"GroupNorm or (\w+)"))


class Centred(nn.Module):
    """Three layers, of which the last two see the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.inner, self.head = nn.Linear(WIDTH, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.into(x)
        return self.head(torch.tanh(self.inner(hidden - hidden.mean(0) * self.training)))


def mixed_up(module: Any, batch: Any) -> Tensor:
    """Mixup, above a layer that sees plain examples."""
    hidden = torch.tanh(module.into(batch["x"]))
    logits = module.head(torch.tanh(module.inner(0.7 * hidden + 0.3 * hidden.roll(1, 0))))
    return 0.7 * F.cross_entropy(logits, batch["y"]) + 0.3 * F.cross_entropy(logits, batch["y"].roll(1, 0))


def mixup() -> Own:
    parts = Centred()
    return Own(mixed_up, into=parts.into, inner=parts.inner, head=parts.head)


def mixup_losses(module: Any, batch: Any) -> Tensor:
    logits = module.head(torch.tanh(module.inner(torch.tanh(module.into(batch["x"])))))
    return F.cross_entropy(logits, batch["y"], reduction="none")


# Weights used elsewhere


def penalised(names: tuple[str, ...] | None = ("0.weight", "2.bias"), weight_decay: float = 0.0) -> Own:
    """A penalty on some weights, or on all; none where there is weight decay."""

    def step(module: Any, batch: Any) -> Tensor:
        own = [p for name, p in module.net.named_parameters() if names is None or name in names]
        return mean_loss(module, batch) + (not weight_decay) * 0.1 * torch.stack([p.square().sum() for p in own]).sum()

    return Own(step, lambda m: torch.optim.SGD(m.parameters(), lr=RATE, weight_decay=weight_decay), net=mlp())


def gradient_penalty(steps_without: bool = False) -> Own:
    def step(module: Any, batch: Any) -> Tensor:
        x = batch["x"].clone().requires_grad_()
        loss = F.cross_entropy(module.net(x), batch["y"])
        return loss if steps_without else loss + torch.autograd.grad(loss, x, create_graph=True)[0].square().sum()

    return Own(step, net=mlp())


def hooked() -> Own:
    module = Own(mean_loss, net=mlp())
    for name in ("0.weight", "2.weight"):
        module.net.get_parameter(name).register_hook(lambda grad: 2 * grad)
    return module


def two_problems() -> Own:
    """A layer that mixes examples, and another whose weight has a hook."""
    module = Own(mean_loss, net=Centred())
    module.net.into.weight.register_hook(lambda grad: 2 * grad)
    return module


def of_the_module() -> Own:
    """Parameters of the LightningModule itself in a penalty, five of them, so that no list may be cut short."""

    def step(module: Any, batch: Any) -> Tensor:
        own = torch.stack([module.a, module.b, module.c, module.d, module.e])
        return F.cross_entropy(module.net(batch["x"]) * own.sum(), batch["y"]) + own.square().sum()

    return Own(step, net=mlp(), **{name: nn.Parameter(torch.tensor(0.3)) for name in "abcde"})


class Spectrum(nn.Module):
    def __init__(self, pairs: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        start = torch.randn(WIDTH // 2 + 1, dtype=torch.cdouble)
        self.scale = nn.Parameter(torch.view_as_real(start).clone() if pairs else start)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale if self.scale.is_complex() else torch.view_as_complex(self.scale)
        return torch.fft.irfft(torch.fft.rfft(x, dim=1) * scale, n=x.shape[1], dim=1)


def spectral(pairs: bool = False) -> Own:
    return Own(mean_loss, net=nn.Sequential(Spectrum(pairs), mlp()))


def looked_up(**option: Any) -> Callable[[], Own]:
    """A table whose gradient is no sum over examples."""
    return lambda: Own(lambda m, b: table_losses(m, b).mean(), net=mlp(), table=nn.Embedding(9, WIDTH, **option))


def table_losses(module: Any, batch: Any) -> Tensor:
    rows = module.table((batch["x"][:, 0].abs() * 3).long() % 9)
    return F.cross_entropy(module.net(rows), batch["y"], reduction="none")


def as_pairs(run: Run, message: str) -> Run:
    return run.made(pairs=bool(said(message, r"pairs of real ones, \[\.\.\., 2\], and call torch.view_as_complex")))


def tied() -> Own:
    """A weight that the step has a penalty on, and what scores a query has not."""

    def step(module: Any, batch: Any) -> Tensor:
        return mean_loss(module, batch) + module.net[0].weight.square().sum()

    return Own(step, net=mlp())


class Prompted(nn.Module):
    """Looked-up rows that all examples share, inside of activation checkpointing."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.prompt, self.inner, self.head = nn.Embedding(2, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        def block(x: Tensor) -> Tensor:
            prompt = self.prompt(torch.arange(2)).expand(len(x), 2, WIDTH)
            return torch.tanh(self.inner(torch.cat([prompt, x[:, None]], 1)))

        return self.head(checkpoint(block, x.clone().requires_grad_(), use_reentrant=self.use_reentrant).mean(1))


def prompted(use_reentrant: bool = True) -> Own:
    return Own(mean_loss, net=Prompted(use_reentrant))


def of_the_module_s(name: str) -> Callable[[Run, str], Run]:
    """Set something in the model as the message has it."""
    return lambda run, message: run.made(**{name: eval(said(message, rf"\b{name}=(\w+)"))})


# Manual optimization


class Manual(Own):
    """A step by hand; ``backward`` and ``optimizer`` are what it calls."""

    def __init__(self, backward: str = "self.manual_backward(loss)", optimizer: str = "self.optimizers()") -> None:
        super().__init__(mean_loss, net=mlp())
        self.automatic_optimization = False
        self.backward_call, self.optimizer_call = backward, optimizer
        self.kept_to_itself = [torch.optim.SGD(self.net.parameters(), lr=RATE)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = eval(self.optimizer_call, {"self": self})
        loss = self.step(self, batch)
        optimizer.zero_grad()
        eval(self.backward_call, {"self": self, "loss": loss})
        optimizer.step()


def instead_of_backward(run: Run, message: str) -> Run:
    return run.made(backward=said(message, r"Call (\S+) instead of loss\.backward\(\)"))


def given_optimizer(run: Run, message: str) -> Run:
    return run.made(optimizer=said(message, r"step what (self\.\S+) gives"))


class WithClosure(Manual):
    def __init__(self, before: bool = False) -> None:
        super().__init__()
        self.before = before

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.step(self, batch)
            self.manual_backward(loss)
            return loss

        if self.before:
            closure()
        optimizer.step(*[closure] * (not self.before))


def closure_before(run: Run, message: str) -> Run:
    return run.made(before=bool(said(message, "call the closure before the step")))


class Clips(Own):
    """Clips in a way of its own."""

    def __init__(self, foreach: bool | None = None) -> None:
        super().__init__(
            mean_loss,
            lambda m: torch.optim.SGD(m.parameters(), lr=RATE, momentum=0.9, nesterov=True, foreach=foreach),
            net=mlp(),
        )

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.1)


class Unfreezes(Own):
    """Unfreezes a layer in some hook."""

    def __init__(self, hook: str = "on_after_backward") -> None:
        super().__init__(mean_loss, net=mlp())
        self.net[0].requires_grad_(False)
        self.hook = hook

    def _unfreeze(self, hook: str) -> None:
        if hook == self.hook:
            self.net[0].requires_grad_(True)

    def on_after_backward(self) -> None:
        self._unfreeze("on_after_backward")

    def on_train_epoch_start(self) -> None:
        self._unfreeze("on_train_epoch_start")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=RATE)


def unfreezes_in(run: Run, message: str) -> Run:
    return run.made(hook=said(message, r"such as in (\w+)"))


class UnfreezesLate(Own):
    """Unfreezes a layer of a module that may be compiled, in the second epoch."""

    def __init__(self, compiled: bool = True, epoch: int = 1) -> None:
        super().__init__(mean_loss, net=mlp())
        self.net[0].requires_grad_(epoch < 0)
        self.epoch = epoch
        if compiled:
            torch._dynamo.reset()
            self.net = torch.compile(self.net, backend="eager")  # type: ignore[assignment]

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == self.epoch:
            self.net.requires_grad_(True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=RATE)


class ChangesGradients(Own):
    def __init__(self, by_itself: bool = True) -> None:
        super().__init__(mean_loss, net=mlp())
        self.by_itself = by_itself

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.by_itself:
            torch.nn.utils.clip_grad_norm_(self.parameters(), 0.05)


def clipped_by_the_trainer(run: Run, message: str) -> Run:
    name = said(message, r"Leave clipping to Trainer\((\w+)=")
    return replace(run.made(by_itself=False), settings={name: 0.05})


# Batches


def without(made: list[Any], key: str) -> list[Any]:
    return [{name: value for name, value in batch.items() if name != key} for batch in made]


ROWS = [{"x": batch["x"][i], "y": batch["y"][i]} for batch in batches() for i in range(4)]
PAIRS = TensorDataset(*(torch.cat([batch[name] for batch in batches()]) for name in ("x", "y")))


def numbered(name: str, dataset: Any) -> Callable[[Run, str], Run]:
    """Number the rows of a data set as the message does."""

    def carry_out(run: Run, message: str) -> Run:
        wrapped = said(message, r"ftrace\.data\.(WithExampleIds\(.*?\)), or pass")
        made = eval(wrapped, {"WithExampleIds": WithExampleIds, "dataset": dataset})
        return replace(run, **{name: DataLoader(made, batch_size=4)})

    return carry_out


def own_key(name: str, option: str) -> Callable[[Run, str], Run]:
    """Name the key that the ids have in the batch: what ``option=...`` asks for."""

    def carry_out(run: Run, message: str) -> Run:
        assert said(message, rf"or pass ({option})=\.\.\.") == option
        given = getattr(run, name)
        return replace(
            run.asked(**{option: "row"}), **{name: [{**b, "row": torch.arange(4) + 4 * i} for i, b in enumerate(given)]}
        )

    return carry_out


def of_pairs(module: Any, batch: Any) -> Tensor:
    x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
    return F.cross_entropy(module.net(x), y)


PACKED = {"x": torch.randn(1, 9, WIDTH, generator=torch.Generator().manual_seed(0)).double(), "y": torch.tensor([1])}


def packed_loss(module: Any, batch: Any) -> Tensor:
    return F.cross_entropy(module.net(batch["x"]).mean(1), batch["y"])


def one_id_a_row(run: Run, message: str) -> Run:
    """An id for each row that the loader yields, whose number the shapes tell."""
    said(message, "Give an id for each row that the loader yields")
    shapes = eval(said(message, r"found (\{.*?\})\. Give"))
    return replace(
        run, data=[{**one, "example_id": torch.arange(shapes["x"][0]) + 10 * i} for i, one in enumerate(run.data)]
    )


class TimeMajor(nn.Module):
    """``[T, B, WIDTH]``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.recurrent, self.head = nn.GRU(WIDTH, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][-1])


def duplicated() -> Any:
    return DataLoader(WithExampleIds(ROWS[:6]), batch_size=2), DataLoader(WithExampleIds(ROWS[6:]), batch_size=2)


def of_two_loaders(module: Any, batch: Any) -> Tensor:
    several = batch if isinstance(batch, list | tuple) else [batch]
    return torch.stack([mean_loss(module, one) for one in several if one is not None]).sum()


def apart(run: Run, message: str) -> Run:
    numbered_apart = said(message, r"apart, (WithExampleIds\(b, first=\d+\))").replace("\n", " ")
    second = eval(numbered_apart, {"WithExampleIds": WithExampleIds, "b": ROWS[6:]})
    return replace(run, data=(DataLoader(WithExampleIds(ROWS[:6]), batch_size=2), DataLoader(second, batch_size=2)))


def together(run: Run, message: str) -> Run:
    expression = said(message, r"together, (WithExampleIds\(ConcatDataset\(\[a, b\]\)\))")
    names = {"WithExampleIds": WithExampleIds, "ConcatDataset": ConcatDataset, "a": ROWS[:6], "b": ROWS[6:]}
    return replace(run, data=DataLoader(eval(expression, names), batch_size=4))


# Queries


def of_one_loss(module: Any, batch: Any) -> Tensor:
    return losses(module, batch).mean()


def a_loss_for_each(run: Run, message: str) -> Run:
    reduction = eval(said(message, r"take reduction=('\w+')"))
    return replace(run, losses=lambda m, b: F.cross_entropy(m.net(b["x"]), b["y"], reduction=reduction))


def with_losses(run: Run, message: str) -> Run:
    assert said(message, r"Pass (query_losses)=\(module, batch\) -> Tensor\[B\]")
    return replace(run, losses=losses)


def with_learned(run: Run, message: str) -> Run:
    name = said(message, r"pass (\w+)=\(module, batch\) -> Tensor\[B\]")
    return run.asked(**{name: lambda module, batch: module.net(batch["x"]).argmax(1) == batch["y"]})


def other_kinds(run: Run, message: str) -> Run:
    return run.asked(scores=tuple(re.findall(r'"(\w+)"', said(message, r"Ask for (.* alone)"))))


def by_norm(run: Run, message: str) -> Run:
    name, value = re.findall(r'Trainer\((\w+)="(\w+)"\)', message)[-1]
    return replace(run, settings={**run.settings, name: value})


REFUSED = {
    "batch norm, into eval mode": (Run(batch_normed), "batch norm|BatchNorm", into_mode),
    "batch norm, another norm": (Run(batch_normed), "normalises by the statistics of its batch", another_norm),
    "a layer mixes": (Run(lambda: Own(mean_loss, net=Centred())), "can't be told apart", leave_out),
    "mixup": (Run(mixup, losses=mixup_losses), "can't be told apart", leave_out),
    "penalty on some": (Run(penalised), "such as a penalty|such as in a penalty", leave_out),
    "penalty on some, decay": (
        Run(penalised),
        r"use weight_decay",
        lambda run, message: run.made(**{said(message, r"\(use (\w+)\)"): 0.1}),
    ),
    "penalty on all": (
        Run(penalised, {"names": None}),
        r"none would be left",
        lambda run, message: run.made(**{said(message, r"\(use (\w+)\)"): 0.1}),
    ),
    "gradient penalty": (
        Run(gradient_penalty),
        "create_graph=True",
        lambda run, message: run.made(steps_without=bool(said(message, "Take penalties on gradients out of the loss"))),
    ),
    "gradient hooks": (Run(hooked), "has a hook of yours", leave_out),
    "gradient hooks, strict": (Run(hooked), "has a hook of yours", argument("strict")),
    "two problems": (
        Run(two_problems),
        r"can't be told apart.*Also: .*has a hook of yours.*Leave them out with ",
        leave_out,
    ),
    "two problems, with globs": (
        Run(two_problems, online={"parameters": ("*", "!net.head.bias")}),
        r'Leave them out with parameters=\("\*", "!net\.head\.bias", ',
        leave_out,
    ),
    "the module's own": (Run(of_the_module), "is used for 4 examples.*such as a penalty", leave_out),
    "the module's own, with globs": (
        Run(of_the_module, online={"parameters": ("*", "!net.2.*")}),
        r'parameters=\("\*", "!net\.2\.\*", "!a"',
        leave_out,
    ),
    "a sparse table": (Run(looked_up(sparse=True), losses=table_losses), r"Embedding\(sparse=True\)", leave_out),
    "a table of short rows": (Run(looked_up(max_norm=0.5), losses=table_losses), r"Embedding\(max_norm=", leave_out),
    "a table by frequency": (
        Run(looked_up(scale_grad_by_freq=True), losses=table_losses),
        r"Embedding\(scale_grad_by_freq=",
        leave_out,
    ),
    "complex": (Run(spectral), "holds complex numbers", leave_out),
    "complex, as pairs": (Run(spectral), "holds complex numbers", as_pairs),
    "tied": (Run(tied), "outside of the modules", leave_out),
    "tied, with globs": (
        Run(tied, online={"parameters": ("*", "!net.2.bias")}),
        r'parameters=\("\*", "!net\.2\.bias", "!net\.0\.weight"\)',
        leave_out,
    ),
    "reentrant": (Run(prompted), "reentrant activation checkpointing", of_the_module_s("use_reentrant")),
    "reentrant, not strict": (Run(prompted), "reentrant activation checkpointing", argument("strict")),
    "reentrant, left out": (Run(prompted), "reentrant activation checkpointing", leave_out),
    "loss.backward()": (
        Run(Manual, {"backward": "loss.backward()"}),
        "a backward pass that the training loop doesn.t run",
        instead_of_backward,
    ),
    "own optimizer": (
        Run(Manual, {"optimizer": "self.kept_to_itself[0]"}),
        r"an optimizer that self\.optimizers\(\) doesn't give",
        given_optimizer,
    ),
    "closure": (Run(WithClosure), "stepped with a closure", closure_before),
    "clips by itself": (Run(Clips), "overrides configure_gradient_clipping", of_the_module_s("foreach")),
    "clips by value": (
        Run(settings={"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
        "not linear in the gradient",
        by_norm,
    ),
    "unfrozen within a step": (Run(Unfreezes, settings={"accumulate_grad_batches": 2}), "was unfrozen", unfreezes_in),
    "unfrozen in a compiled module": (
        Run(UnfreezesLate, settings={"max_epochs": 2}),
        "was unfrozen in a compiled module",
        lambda run, message: run.made(compiled=not said(message, r"or train (without) torch\.compile")),
    ),
    "unfrozen in a compiled module, before": (
        Run(UnfreezesLate, settings={"max_epochs": 2}),
        "was unfrozen in a compiled module",
        lambda run, message: run.made(epoch=-len(said(message, "Unfreeze before training"))),
    ),
    "gradients changed": (Run(ChangesGradients), "Something changes gradients", clipped_by_the_trainer),
    "no ids": (Run(data=without(batches(), "example_id")), 'no "example_id"', numbered("data", ROWS)),
    "no ids, a key": (Run(data=without(batches(), "example_id")), 'no "example_id"', own_key("data", "id_key")),
    "no ids in tuples": (
        Run(lambda: Own(of_pairs, net=mlp()), data=DataLoader(PAIRS, batch_size=4)),
        "found a list",
        numbered("data", PAIRS),
    ),
    "no query ids": (Run(queries=without(QUERIES, "query_id")), 'no "query_id"', numbered("queries", ROWS)),
    "no query ids, a key": (
        Run(queries=without(batches(), "example_id")),
        'no "query_id"',
        own_key("queries", "query_id_key"),
    ),
    "two ids for four rows": (
        Run(data=[{**one, "example_id": one["example_id"][:2]} for one in batches()]),
        "the batch has 2 ids",
        one_id_a_row,
    ),
    "ids of packed texts": (
        Run(
            lambda: Own(packed_loss, net=mlp()),
            data=[{**PACKED, "example_id": torch.arange(2) + 2 * i} for i in range(3)],
        ),
        "the batch has 2 ids",
        one_id_a_row,
    ),
    "names, then numbers": (
        Run(data=[{**batches()[0], "example_id": ["a", "b", "c", "d"]}, *batches()[1:]]),
        "expected names",
        ids(r"\[str\(id\)[^\]]*\]"),
    ),
    "numbers, then names": (
        Run(data=[*batches()[:2], {**batches()[2], "example_id": ["a", "b", "c", "d"]}]),
        "expected numbers",
        ids(r"\[str\(id\)[^\]]*\]"),
    ),
    "large ids": (
        Run().with_ids(lambda given: given.numpy().astype("object") + 2**64),
        "from -2",
        ids(r"\[str\(id\)[^\]]*\]"),
    ),
    "large unsigned ids": (
        Run().with_ids(lambda given: torch.tensor([2**63 + i for i in given.tolist()], dtype=torch.uint64)),
        "from -2",
        ids(r"\[str\(id\)[^\]]*\]"),
    ),
    "ids with a point": (Run().with_ids(lambda given: given.double()), "float64", ids(r"ids\.long\(\)")),
    "ids with a point, array": (
        Run().with_ids(lambda given: given.double().numpy()),
        "float64",
        ids(r'ids\.astype\("int64"\)'),
    ),
    "a column of ids": (Run().with_ids(lambda given: given[:, None]), "Flatten", ids(r"ids\.reshape\(-1\)")),
    "bytes": (
        Run().with_ids(lambda given: np.array([b"%d" % i for i in given.tolist()])),
        "found bytes",
        ids(r"\[id\.decode\(\)[^\]]*\]"),
    ),
    "ids again": (
        Run(data=DataLoader([{**row, "example_id": i % 4} for i, row in enumerate(ROWS)], batch_size=4)),  # type: ignore[arg-type]
        "twice in epoch 0",
        argument("shared_ids"),
    ),
    "ids again, numbered together": (
        Run(data=DataLoader([{**row, "example_id": i % 4} for i, row in enumerate(ROWS)], batch_size=4)),  # type: ignore[arg-type]
        "twice in epoch 0",
        together,
    ),
    "two loaders, apart": (
        Run(lambda: Own(of_two_loaders, net=mlp()), data=duplicated),
        "number their rows alike",
        apart,
    ),
    "two loaders, together": (
        Run(lambda: Own(of_two_loaders, net=mlp()), data=duplicated),
        "number their rows alike",
        together,
    ),
    "two loaders, shared": (
        Run(lambda: Own(of_two_loaders, net=mlp()), data=duplicated),
        "number their rows alike",
        argument("shared_ids"),
    ),
    "no query losses": (Run(losses=None), "don't know the loss of a query", with_losses),
    "a mean of queries": (Run(losses=of_one_loss), "looks like a mean", a_loss_for_each),
    "learned by nobody": (Run(online={"breakdown": ("learned",)}), "whether a query is right", with_learned),
    "update of an unknown optimizer": (
        Run(
            lambda: Own(mean_loss, lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01), net=mlp()),
            online={"scores": ("update",)},
        ),
        "know what the optimizer does",
        other_kinds,
    ),
}


INDEX_REFUSED = {
    "batch norm": (lambda: batch_normed(), "normalises by the statistics", ("*",)),
    "a layer mixes": (lambda: Own(mean_loss, net=Centred()), "can't be told apart", ("*",)),
    "gradient hooks": (hooked, "has a hook of yours", ("*",)),
    "the module's own": (of_the_module, "is used for 4 examples.*such as a penalty", ("*",)),
    "the default parameters": (tied, "outside of the modules", None),
    "two rates": (
        lambda: Own(
            mean_loss,
            lambda m: torch.optim.SGD(
                [{"params": m.net[0].parameters(), "lr": 0.1}, {"params": m.net[2].parameters(), "lr": 0.2}]
            ),
            net=mlp(),
        ),
        "one learning rate",
        ("*",),
    ),
    "two rates, one of one parameter": (
        lambda: Own(
            mean_loss,
            lambda m: torch.optim.SGD(
                [{"params": [m.net[0].weight], "lr": 0.1}, {"params": [m.net[2].weight], "lr": 0.2}]
            ),
            net=mlp(),
        ),
        "one learning rate",
        ("*",),
    ),
}


@pytest.mark.parametrize(("make", "problem", "parameters"), INDEX_REFUSED.values(), ids=INDEX_REFUSED.keys())
def test_the_remedy_works_for_an_index(make: Callable[[], Any], problem: str, parameters: Any, tmp_path: Path) -> None:
    def write(module: Any, folder: Path, parameters: Any) -> GradientIndex:
        writer = GradientIndexWriter(folder, parameters=parameters, side=2, layout="parameter", correction="none")
        own_parts.trainer(tmp_path, [writer]).fit(module, own_parts.loader(batches()))
        return GradientIndex(folder)

    with pytest.raises(ValueError, match=problem) as refusal:
        write(make(), tmp_path / "index", parameters)
    message = str(refusal.value)
    if problem.startswith("normalises"):
        index = write(batch_normed(mode=said(message, r"into (eval) mode")), tmp_path / "again", ("*",))
    else:
        index = write(make(), tmp_path / "again", eval(said(message, r"parameters=(\([^)]*\))")))
    assert index.num_rows == 12


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two callbacks of one folder, and the folder of another run."""
    monkeypatch.chdir(tmp_path)

    def train(*folders: str | Path) -> None:
        made = [OnlineTracIn(own_parts.loader(QUERIES), name, losses) for name in folders]
        own_parts.trainer(tmp_path, made).fit(Own(mean_loss, net=mlp()), own_parts.loader(batches()))

    with pytest.raises(ValueError, match="Give each an output_dir of its own"):
        train("a", tmp_path / "a")
    train("a", tmp_path / "b")
    message = "holds the scores of another run .* Name another output_dir, or move or delete the folder"
    with pytest.raises(ValueError, match=message):
        train("a")
    train("c")
    (tmp_path / "a").rename(tmp_path / "moved")
    train("a")


@pytest.mark.filterwarnings("error:Casting complex")  # the ledger's account of what is left out
@pytest.mark.parametrize(("run", "problem", "carry_out"), REFUSED.values(), ids=REFUSED.keys())
def test_the_remedy_in_the_message_works(
    run: Run, problem: str, carry_out: Callable[[Run, str], Run], tmp_path: Path
) -> None:
    with pytest.raises((ValueError, RuntimeError), match=problem) as refusal:
        fresh(run).go(tmp_path)
    remedied = carry_out(fresh(run), str(refusal.value))
    store = remedied.go(tmp_path / "again")
    assert store.manifest["complete"]
    assert store.matrix("dot").any()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("run", "problem"), [case[:2] for case in REFUSED.values()], ids=REFUSED.keys())
def test_strict_false_goes_on_where_the_message_says_so(run: Run, problem: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, RuntimeError), match=problem) as refusal:
        fresh(run).go(tmp_path)
    if "strict=False" in str(refusal.value):
        assert fresh(run).asked(strict=False).go(tmp_path / "again").matrix("dot").any()


def fresh(run: Run) -> Run:
    """Loaders of its own."""
    return replace(run, data=run.data()) if callable(run.data) else run
