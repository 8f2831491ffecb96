"""Gradients that are read inside the backward pass, against those that are read after it."""

import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel

from ftrace.gradients import GradientCapture, PerExampleGradients, UnreadableError
from ftrace.gradients.uses import AnyUse

BATCH, TOKENS = 3, 5
Losses = Callable[[nn.Module, Tensor], Tensor]


class Blocks(nn.Module):
    """A tied token table, a layer that runs twice, norms, a vector and a layer whose output nothing uses."""

    def __init__(self, again: bool | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.shared = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.unused = nn.Linear(6, 2)
        self.again = again

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.table(ids)
        for _ in range(2):
            if self.again is None:
                hidden = self.norm(hidden + self.shared(hidden).tanh())
            else:
                hidden = self.norm(hidden + checkpoint(self.shared, hidden, use_reentrant=self.again).tanh())
        self.unused(hidden)
        return nn.functional.linear(hidden, self.table.weight)


def read(
    model: nn.Module, losses: Losses, batch: Tensor, *, early: bool
) -> tuple[PerExampleGradients, list[list[str]]]:
    """Read gradients: all of them, and by call the names of those that were read early."""
    capture = GradientCapture(model, reads_graph=False)
    taken: list[PerExampleGradients] = []
    with capture:
        with capture.recording(len(batch)) as recording:
            recording.backward(losses(model, batch))
            if early:  # now that it is known whose rows are whose
                recording.forget_gradients()
                with capture.recording(len(batch)) as recording:
                    loss = losses(model, batch).sum()
                    recording.prepare([loss.grad_fn])
                    recording.read_early(taken.append)
                    loss.backward()
        rest = recording.gradients()
    return PerExampleGradients.sum([rest, *taken]), [sorted(gradients.parts) for gradients in taken]


def gpt2_losses(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids).logits[:, :-1]
    return nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").sum(1)


def sums(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids).square().sum((1, 2))


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=13, n_embd=8, n_layer=2, n_head=2, n_positions=TOKENS)
    return GPT2LMHeadModel(config).double().eval()


def blocks(again: bool | None = None) -> nn.Module:
    torch.manual_seed(0)
    return Blocks(again).double()


def rows() -> Tensor:
    return torch.randint(0, 11, (BATCH, TOKENS), generator=torch.Generator().manual_seed(1))


def by_autograd(model: nn.Module, losses: Losses, batch: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = [torch.autograd.grad(losses(model, row[None]).sum(), parameters, allow_unused=True) for row in batch]
    return {
        name: torch.stack([grad[place] for grad in grads])
        for place, name in enumerate(names)
        if grads[0][place] is not None
    }


def test_gpt2_is_read_early_and_right() -> None:
    model, batch = gpt2(), rows()
    found, taken = read(model, gpt2_losses, batch, early=True)
    expected = by_autograd(model, gpt2_losses, batch)
    assert found.parts.keys() == expected.keys()
    for name, of_name in expected.items():
        torch.testing.assert_close(found.dense(name), of_name, rtol=1e-9, atol=1e-12)
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    assert sorted(name for call in taken for name in call) == sorted(matrices)  # each once
    assert taken[-1] == ["transformer.wte.weight"] or taken[-2] == ["transformer.wte.weight"]  # after its last use


@pytest.mark.parametrize("again", [None, False, True])
def test_layers_that_run_again_are_right(again: bool | None) -> None:
    model, batch = blocks(again), rows()
    expected = by_autograd(blocks(), sums, batch)
    capture = GradientCapture(model)
    with capture:
        for round in range(2):
            taken: list[PerExampleGradients] = []
            with capture.recording(BATCH) as recording:
                loss = sums(model, batch).sum()
                recording.prepare([loss.grad_fn])
                if round:
                    recording.read_early(taken.append)
                loss.backward()
                gradients = PerExampleGradients.sum([recording.gradients(), *taken])
            for name in ("shared.weight", "shared.bias", "norm.weight", "norm.bias"):
                torch.testing.assert_close(gradients.dense(name), expected[name], rtol=1e-9, atol=1e-12)
    early = {name for of_call in taken for name in of_call.parts}
    assert ("shared.weight" in early) == (again is not True)  # what runs in the backward pass is left to its end


class HalfAgain(Blocks):
    """A layer that runs once in the graph, and once in reentrant activation checkpointing: before that or after it."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.table(ids)
        for again in (self.first, not self.first):
            hidden = (checkpoint(self.shared, hidden, use_reentrant=True) if again else self.shared(hidden)).tanh()
        return hidden


@pytest.mark.parametrize("first", [True, False])
def test_a_layer_that_half_runs_again_is_right_the_first_time(first: bool) -> None:
    torch.manual_seed(0)
    model, batch = HalfAgain(first).double(), rows()
    taken: list[PerExampleGradients] = []
    with GradientCapture(model) as capture, capture.recording(BATCH) as recording:
        loss = sums(model, batch).sum()
        recording.prepare([loss.grad_fn])
        recording.read_early(taken.append)
        loss.backward()
        found = PerExampleGradients.sum([recording.gradients(), *taken])
    for row, of_ids in enumerate(batch):
        model.zero_grad()
        sums(model, of_ids[None]).sum().backward()
        for name in ("shared.weight", "shared.bias"):
            expected = model.get_parameter(name).grad
            torch.testing.assert_close(found.dense(name)[row], expected, rtol=1e-9, atol=1e-12)


class RunsInBackward(torch.autograd.Function):
    """A layer that runs for the first time in the backward pass, on what no hook has seen in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layer: nn.Linear) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(hidden)
        return nn.functional.linear(hidden, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        with torch.enable_grad():
            hidden = ctx.saved_tensors[0].detach().requires_grad_()
            torch.autograd.backward(ctx.layer(hidden), grads)
        return hidden.grad, None


def test_a_run_in_the_backward_pass_that_nothing_foretold_is_refused() -> None:
    torch.manual_seed(0)
    model, batch = Blocks().double(), rows()
    with GradientCapture(model) as capture, capture.recording(BATCH) as recording:
        hidden = RunsInBackward.apply(model.table(batch), model.shared)
        loss = model.shared(hidden).square().sum()
        recording.prepare([loss.grad_fn])
        recording.read_early(lambda gradients: None)
        with pytest.raises(UnreadableError, match="second gradient"):
            loss.backward()


def test_factors_are_forgotten_and_nothing_is_kept_alive() -> None:
    model, batch = gpt2(), rows()
    capture = GradientCapture(model)
    held: list[int] = []

    def hold(uses: list[AnyUse], gradients: PerExampleGradients) -> None:
        held.append(sum(use.has_gradient() for use in uses))

    with capture, capture.recording(BATCH) as recording:
        loss = gpt2_losses(model, batch).sum()
        recording.prepare([loss.grad_fn])
        recording.read_early(partial(hold, recording._uses))
        loss.backward()
    assert max(held) <= 2  # of 21 uses: the current one, and the tied table's first
    of_pass = weakref.ref(recording.of_pass)
    recording.close()
    del recording, loss
    gc.collect()
    assert of_pass() is None


def test_a_graph_that_is_gone_through_twice_is_refused() -> None:
    model, batch = gpt2(), rows()
    capture = GradientCapture(model)
    with capture, capture.recording(BATCH) as recording:
        loss = gpt2_losses(model, batch).sum()
        recording.prepare([loss.grad_fn])
        recording.read_early(lambda gradients: None)
        loss.backward(retain_graph=True)
        with pytest.raises(UnreadableError, match="second gradient"):
            loss.backward()


def test_an_error_of_what_takes_gradients_arrives() -> None:
    model, batch = gpt2(), rows()
    capture = GradientCapture(model)

    def take(gradients: PerExampleGradients) -> None:
        raise MemoryError("none left")

    with capture, capture.recording(BATCH) as recording:
        loss = gpt2_losses(model, batch).sum()
        recording.prepare([loss.grad_fn])
        recording.read_early(take)
        with pytest.raises(MemoryError, match="none left"):
            loss.backward()
