"""Refusals of layers and parameters name a remedy that works: it is taken from the message and carried out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ftrace.callbacks import GradientIndexWriter
from ftrace.index import GradientIndex
from helpers import own_parts
from helpers.own_parts import CLASSES, RATE, WIDTH, Own, batches, mean_loss, mlp
from helpers.remedies import (
    Run,
    argument,
    carry_out_remedy,
    go_on_where_the_message_says_so,
    leave_out,
    of_the_module_s,
    said,
)

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


@pytest.mark.filterwarnings("error:Casting complex")  # the ledger's account of what is left out
@pytest.mark.parametrize(("run", "problem", "carry_out"), REFUSED.values(), ids=REFUSED.keys())
def test_the_remedy_in_the_message_works(
    run: Run, problem: str, carry_out: Callable[[Run, str], Run], tmp_path: Path
) -> None:
    carry_out_remedy(run, problem, carry_out, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("run", "problem"), [case[:2] for case in REFUSED.values()], ids=REFUSED.keys())
def test_strict_false_goes_on_where_the_message_says_so(run: Run, problem: str, tmp_path: Path) -> None:
    go_on_where_the_message_says_so(run, problem, tmp_path)
