"""Refusals of loops, optimizers and folders name a remedy that works: it is taken from the message and carried out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ftrace.callbacks import OnlineTracIn
from helpers import own_parts
from helpers.own_parts import QUERIES, RATE, Own, batches, losses, mean_loss, mlp
from helpers.remedies import Run, carry_out_remedy, go_on_where_the_message_says_so, of_the_module_s, said


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


def other_kinds(run: Run, message: str) -> Run:
    return run.asked(scores=tuple(re.findall(r'"(\w+)"', said(message, r"Ask for (.* alone)"))))


def by_norm(run: Run, message: str) -> Run:
    name, value = re.findall(r'Trainer\((\w+)="(\w+)"\)', message)[-1]
    return replace(run, settings={**run.settings, name: value})


REFUSED = {
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
    "gradients changed": (Run(ChangesGradients), "Something changed it in between", clipped_by_the_trainer),
    "update of an unknown optimizer": (
        Run(
            lambda: Own(mean_loss, lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01), net=mlp()),
            online={"scores": ("update",)},
        ),
        "know what the optimizer does",
        other_kinds,
    ),
}


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
    carry_out_remedy(run, problem, carry_out, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("run", "problem"), [case[:2] for case in REFUSED.values()], ids=REFUSED.keys())
def test_strict_false_goes_on_where_the_message_says_so(run: Run, problem: str, tmp_path: Path) -> None:
    go_on_where_the_message_says_so(run, problem, tmp_path)
