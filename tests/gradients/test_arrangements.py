"""Random arrangements of examples, pieces and positions: batch after batch, in training and with one loss an example.

The engine is used as a training loop uses it: a step is rehearsed when layers run whose rows nobody has seen.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from ftrace.gradients import Examples, GradientCapture, LayoutBook, PerExampleGradients, Rehearsal
from helpers import oracle
from helpers.rehearsal_step import Batch, Step

# Where the axes of [B, pieces, positions, width] go, and how many of them become one in layers.
ARRANGEMENTS = {
    "rows side by side": ((0, 1, 2), (2, 1)),
    "flat": ((0, 1, 2), (3,)),
    "time first": ((2, 0, 1), (1, 2)),
    "time first, flat": ((2, 0, 1), (3,)),
    "blocks": ((1, 0, 2), (2, 1)),
    "blocks, flat": ((1, 0, 2), (3,)),
    "axes kept": ((1, 0, 2), (1, 1, 1)),
}


class WithoutRule(nn.Module):
    """A matrix and a number that only the fallback can read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix, self.size = nn.Parameter(torch.ones(width, width)), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.matrix).tanh() * self.size.exp()


class Model(nn.Module):
    """Layers on rows in some arrangement, and positions that go through a layer."""

    def __init__(self, arrangement: str, width: int, has_positions: bool) -> None:
        super().__init__()
        self.order, self.joined = ARRANGEMENTS[arrangement]
        self.body = nn.Sequential(nn.Linear(width, width), WithoutRule(width), nn.LayerNorm(width))
        self.positions = nn.Embedding(8, width) if has_positions else None
        self.encoder, self.head = nn.Linear(width, width), nn.Linear(width, 2)

    def run(self, layer: nn.Module, x: Tensor) -> Tensor:
        """A layer on ``[..., width]``, whose axes are joined."""
        shape, first = [], 0
        for count in self.joined:
            shape.append(int(torch.Size(x.shape[first : first + count]).numel()))
            first += count
        return layer(x.reshape(*shape, x.shape[-1])).view(*x.shape[:-1], -1)

    def forward(self, x: Tensor) -> Tensor:
        """One loss for each example of ``[B, pieces, positions, width]``."""
        positions = x.shape[2]
        x = self.run(self.body, x.permute(*self.order, 3).contiguous())
        if self.positions is not None:
            found = self.encoder(self.positions(torch.arange(positions))).sin()
            x = x + found.view([positions if axis == 2 else 1 for axis in self.order] + [-1])
        x = self.run(self.head, x).movedim(self.order.index(0), 0)
        return x.sin().square().flatten(1).sum(1)


@dataclass
class Loop:
    """What a training loop keeps."""

    capture: GradientCapture
    book: LayoutBook = field(default_factory=LayoutBook)
    tried: set = field(default_factory=set)
    is_due: bool = True
    rehearsals: int = 0

    def read(self, step: Step) -> PerExampleGradients:
        """Each example's share of the step's loss."""
        examples = Examples(len(step.batch["x"]))
        if self.is_due and examples.total > 1:
            self.rehearse(step, examples)
        recording = self.capture.start(examples.total, book=self.book)
        [loss] = step.losses(step.batch)
        recording.prepare([loss.grad_fn])
        recording.of_pass.open = set()
        new = {key for key in recording.unknown() if key not in self.tried or key in self.book.verified}
        if new and examples.total > 1:
            self.rehearse(step, examples, new & self.book.verified)
            recording.prepare([loss.grad_fn])
        loss.backward()
        self.is_due = self.is_due or bool(recording.of_pass.open)
        self.capture.stop()
        self.capture.module.zero_grad()
        return recording.gradients()

    def rehearse(self, step: Step, examples: Examples, again: set = frozenset()) -> None:
        """Find out whose rows are whose."""
        self.rehearsals += 1
        rehearsal = Rehearsal(self.capture, step, examples, self.book, again=again)
        rehearsal.find_rows()
        rehearsal.read(unprojected=True)
        self.tried |= rehearsal.recorded_keys
        self.is_due = not rehearsal.recorded_keys <= self.book.verified or not rehearsal.is_complete


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_batch_after_batch(arrangement: str, seed: int) -> None:
    drawn = random.Random(f"{arrangement} {seed}")
    width, pieces, begins_at_zero = drawn.choice([2, 4, 6]), drawn.choice([1, 2, 3]), drawn.random() < 0.3
    module = Model(arrangement, width, has_positions=drawn.random() < 0.7)
    torch.manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter, dtype=torch.float64)
    if begins_at_zero:
        nn.init.zeros_(module.head.weight)
    loop, of_queries = Loop(GradientCapture(module)), GradientCapture(module)

    def losses(batch: Batch) -> list[Tensor]:
        return [module(batch["x"]).mean()]

    for number in range(5):
        count, positions = drawn.choice([1, 2, 3, 4, 5]), drawn.choice([1, 2, 3, 4, 6, 8])
        inputs = torch.randn(count, pieces, positions, width, dtype=torch.float64)
        rows = oracle.gradients(module, lambda x=inputs: module(x))
        with loop.capture:
            read = loop.read(Step(losses, {"x": inputs}))
        with of_queries, of_queries.recording(count) as recording:
            recording.backward(module(inputs))
        for what, found, share in (("training", read, 1 / count), ("queries", recording.gradients(), 1)):
            for name in rows[0]:
                expected = share * torch.stack([row[name] for row in rows])
                value = found.dense(name) if name in found.parts else torch.zeros_like(expected)
                where = f"{name} in {what}, batch {number}: {list(inputs.shape)}"
                torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-10, msg=where)
        if begins_at_zero and number == 1:
            nn.init.normal_(module.head.weight)
    assert loop.rehearsals <= 4
