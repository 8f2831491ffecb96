"""Rehearsed steps held against autograd, and modules to rehearse."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ftrace.gradients import (
    Examples,
    GradientCapture,
    LayoutBook,
    PerExampleGradients,
    Rehearsal,
)
from ftrace.gradients.layout_book import Key
from helpers import oracle
from helpers.rehearsal_step import Batch, Step, randomised

BATCH, POSITIONS, WIDTH = 4, 3, 6


def hold(
    module: nn.Module,
    step: Step,
    alone: Callable[[int], Tensor],
    examples: Examples | None = None,
    book: LayoutBook | None = None,
    again: Collection[Key] = (),
) -> Rehearsal:
    """Hold a rehearsed step against autograd.

    Args:
        module: What the step trains.
        step: The step.
        alone: One example's share of all of the step's losses.
        examples: In the batch.
        book: What is known before.
        again: What is looked at once more.
    """
    examples = examples or Examples(BATCH)
    rows = oracle.gradients(module, lambda: [alone(example) for example in range(examples.total)])
    with GradientCapture(module, strict=True) as capture:
        rehearsal = Rehearsal(capture, step, examples, LayoutBook() if book is None else book, again=again)
        rehearsal.find_rows()
        found, totals = rehearsal.read(unprojected=True)
        assert rehearsal.is_complete
        some = range(examples.total) if examples.total < 8 else [0, 5, examples.total - 1]
        of_one = [rehearsal.alone(example) for example in some]
        trained = read_in_training(capture, step, examples, rehearsal.book)
    for name in rows[0]:
        expected = torch.stack([row[name] for row in rows])
        zeros = torch.zeros_like(expected)
        read = found.dense(name) if name in found.parts else zeros
        cut = torch.stack([one.get(name, zeros[0]) for one in of_one])
        in_training = trained.dense(name) if name in trained.parts else zeros
        for what, value, right in (
            ("read", read, expected),
            ("cut", cut, expected[list(some)]),
            ("in training", in_training, expected),
        ):
            torch.testing.assert_close(
                value, right, rtol=1e-9, atol=1e-10, msg=lambda text, n=name, w=what: f"{n}, {w}: {text}"
            )
        torch.testing.assert_close(totals.get(name, zeros[0]), expected.sum(0), rtol=1e-9, atol=1e-10, msg=name)
    return rehearsal


def read_in_training(capture: GradientCapture, step: Step, examples: Examples, book: LayoutBook) -> PerExampleGradients:
    """What is read of the step's own backward passes."""
    recording = capture.start(examples.total, loaders=examples.loaders, book=book, documents=examples.documents)

    def on_loss(loss: Tensor, keeps: bool) -> None:
        recording.prepare([loss.grad_fn])
        loss.backward(retain_graph=keeps)

    step(on_loss)
    found = recording.gradients()
    capture.stop()
    capture.module.zero_grad()
    return found


def layers() -> nn.Module:
    return randomised(
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.LayerNorm(WIDTH), nn.Dropout(0.2), nn.Linear(WIDTH, WIDTH))
    )


def preference(chosen: Tensor, rejected: Tensor) -> Tensor:
    return F.softplus(rejected.sin().flatten(1).sum(1) - 2 * chosen.sin().flatten(1).sum(1))


def shares(losses: Callable[[Batch], Tensor], batch: Batch, seed: int = 5) -> Callable[[int], Tensor]:
    """Of a step whose loss is the mean of some."""

    def alone(example: int) -> Tensor:
        torch.manual_seed(seed)
        found = losses(batch)
        return found[example] / len(found)

    return alone


class Positioned(nn.Module):
    """Positions, prompts that go through a layer, and a scale that its layer returns, before a head."""

    def __init__(self, prompts: int = 4) -> None:
        super().__init__()
        self.positions, self.prompts = nn.Embedding(POSITIONS, WIDTH), nn.Embedding(prompts, WIDTH)
        self.encoder, self.body = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale, self.head = Scale(), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        prompts = self.encoder(self.prompts(torch.arange(self.prompts.num_embeddings))).tanh()
        x = self.body(x + self.positions(torch.arange(POSITIONS)))
        rows = torch.cat([prompts.expand(len(x), -1, -1), x], 1)
        rows = (rows @ rows.transpose(1, 2) * self.scale()).softmax(-1) @ rows
        return self.head(rows)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        return self.value.exp()
