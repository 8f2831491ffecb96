"""Whose rows are whose, found out from one loss for each example: equal to autograd, or refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ftrace.gradients import Examples, GradientCapture, LayoutBook
from ftrace.gradients.layout_book import Key, Shared
from ftrace.gradients.layouts import Layout
from helpers import oracle
from helpers.rehearsal_step import random, randomised

BATCH, WIDTH = 4, 5
Losses = Callable[[], Tensor]


def hold(module: nn.Module, losses: Losses, count: int = BATCH, capture: GradientCapture | None = None) -> LayoutBook:
    """Hold what is read against autograd one example at a time."""
    capture = capture or GradientCapture(module, strict=True)
    with capture, capture.recording(count) as recording:
        recording.backward(losses())
        found = recording.gradients()
    rows = oracle.gradients(module, losses)
    for name in rows[0]:
        expected = torch.stack([row[name] for row in rows])
        read = found.dense(name) if name in found.parts else torch.zeros_like(expected)
        torch.testing.assert_close(read, expected, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
    return capture.book


def layers(*extra: nn.Module) -> nn.Module:
    return randomised(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.LayerNorm(WIDTH), *extra))


@pytest.mark.parametrize("positions", [1, 3, 4, 8])
def test_pairs_in_blocks(positions: int) -> None:
    """``torch.cat([chosen, rejected])``, with as many positions as examples too."""
    module, chosen, rejected = layers(), random(BATCH, positions, WIDTH), random(BATCH, positions, WIDTH, seed=2)

    def losses() -> Tensor:
        first, second = module(torch.cat([chosen, rejected])).sin().flatten(1).sum(1).chunk(2)
        return nn.functional.softplus(second - 2 * first)

    known = hold(module, losses).known
    assert known[Key("0")] == known[Key("2")] == Layout(before=None, after=1)


@pytest.mark.parametrize("positions", [1, 3, 4, 8])
def test_pairs_side_by_side(positions: int) -> None:
    module, pairs = layers(), random(BATCH, 2, positions, WIDTH)

    def losses() -> Tensor:
        scores = module(pairs.flatten(0, 1)).sin().flatten(1).sum(1).view(BATCH, 2)
        return nn.functional.softplus(scores[:, 1] - 2 * scores[:, 0])

    assert hold(module, losses).known[Key("0")] == Layout()


@pytest.mark.parametrize("positions", [1, 3, 4, 8])
def test_time_first(positions: int) -> None:
    module, inputs = layers(), random(positions, BATCH, WIDTH)
    book = hold(module, lambda: module(inputs).sin().sum((0, 2)))
    assert book.known[Key("0")] == Layout(1)
    assert Key("2") in book.verified


def test_blocks_of_several_rows_each() -> None:
    """Two blocks, each with three rows an example side by side."""
    module, inputs = layers(), random(2, BATCH, 3, WIDTH)

    def losses() -> Tensor:
        found = module(inputs.flatten(0, 2)).sin().sum(1).view(2, BATCH, 3)
        return (found[0] * found[1].cos()).sum(1)

    known = hold(module, losses).known[Key("0")]
    assert isinstance(known, Layout)
    assert known.owners(24, Examples(BATCH)).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3] * 2


class SeveralShapes(nn.Module):
    """Rows side by side, then time first, then one row an example, then blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.time = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.pooled, self.blocks = nn.Linear(WIDTH, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        count = len(x)
        x = self.rows(x.flatten(0, 1)).view(count, -1, WIDTH).transpose(0, 1)
        x = self.pooled(self.time(x.contiguous()).tanh().mean(0))
        first, second = self.blocks(torch.cat([x, x.sin()])).chunk(2)
        return first * second


@pytest.mark.parametrize("positions", [3, 4])
def test_layers_of_several_orders_in_one_module(positions: int) -> None:
    module, inputs = randomised(SeveralShapes()), random(BATCH, positions, WIDTH)
    known = hold(module, lambda: module(inputs).sin().sum(1)).known
    assert known[Key("rows")] == Layout()
    assert known[Key("time")] == Layout(1)
    assert known[Key("pooled")] == Layout()
    assert known[Key("blocks")] == Layout(before=None, after=1)


def test_what_was_found_holds_in_batches_of_other_sizes() -> None:
    module = layers()
    capture = GradientCapture(module)
    for count, positions in ((4, 3), (3, 7), (7, 7), (1, 2), (2, 5)):
        inputs = random(positions, count, WIDTH)
        hold(module, lambda x=inputs: module(x).sin().sum((0, 2)), count, capture)


def in_blocks(module: nn.Module, inputs: Tensor) -> Losses:
    """Of ``[blocks, B, rows side by side, width]``."""

    def losses() -> Tensor:
        return module(inputs.flatten(0, 2)).view(inputs.shape).sin().square().sum((0, 2, 3))

    return losses


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 4, 1), (2, 4, 1), (3, 4, 1)],
        [(1, 4, 1), (1, 4, 3)],
        [(2, 4, 1), (2, 4, 3), (2, 4, 5)],
        [(1, 4, 2), (3, 4, 2)],
        [(2, 4, 2), (3, 4, 2), (5, 4, 2)],
        [(5, 3, 1), (2, 4, 1), (1, 4, 1), (3, 2, 1)],
        [(2, 3, 3), (2, 4, 1), (2, 4, 4)],
    ],
    ids=str,
)
def test_an_order_that_shows_in_a_larger_batch_only(shapes: list[tuple[int, int, int]]) -> None:
    """With one row an example, or one block, or one row side by side, several orders are one."""
    module = layers()
    capture = GradientCapture(module)
    for shape in shapes:
        hold(module, in_blocks(module, random(*shape, WIDTH)), shape[1], capture)


def test_examples_whose_losses_are_flat_at_first() -> None:
    """One example's rows alone leave the order open, which later batches must be able to say."""
    module = layers()
    capture = GradientCapture(module)
    inputs = random(2, BATCH, WIDTH)
    for active in ([0], [0, 2], [1, 2, 3], [0, 1, 2, 3]):
        weights = torch.zeros(BATCH, dtype=torch.float64).index_fill(0, torch.tensor(active), 1.0)

        def losses(weights: Tensor = weights) -> Tensor:
            first, second = module(inputs.flatten(0, 1)).sin().sum(1).chunk(2)
            return (first + 0 * second).relu() * weights if weights.sum() < 2 else (first - 2 * second) * weights

        hold(module, losses, BATCH, capture)


class Headed(nn.Module):
    """What begins at zero hides what is behind it from its first loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


def test_a_layer_that_gets_its_first_gradient_later() -> None:
    module = randomised(Headed())
    nn.init.zeros_(module.head.weight)
    inputs = random(3, BATCH, WIDTH)
    capture = GradientCapture(module)
    for step in range(2):
        book = hold(module, lambda: module(inputs).sin().sum((0, 2)), BATCH, capture)
        assert (Key("body") in book.verified) == bool(step)
        nn.init.normal_(module.head.weight)


class Mixing(nn.Module):
    """A layer on the mean over the batch; then one on each example."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.own = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(x + self.mixed(x.mean(0)).sin())


def test_a_layer_on_the_mean_of_the_batch_is_computed_once_for_all() -> None:
    """Each example's loss has a gradient of it, which is that example's own."""
    module, inputs = randomised(Mixing()), random(BATCH, 3, WIDTH)
    book = hold(module, lambda: module(inputs).cos().flatten(1).sum(1))
    assert isinstance(book.known[Key("mixed")], Shared)


class Neighbours(nn.Module):
    """Each example's rows go into its neighbour's loss as well."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x)
        return found + found.roll(1, 0).sin()


def test_rows_that_go_into_several_losses() -> None:
    module, inputs = randomised(Neighbours()), random(BATCH, WIDTH)
    assert isinstance(hold(module, lambda: module(inputs).cos().sum(1)).known[Key("layer")], Shared)


class Distances(nn.Module):
    """In-batch negatives: each example's loss has all others' rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x)
        return (found @ found.T).log_softmax(1).diagonal()


def test_in_batch_negatives() -> None:
    module, inputs = randomised(Distances()), random(BATCH, WIDTH)
    assert isinstance(hold(module, lambda: module(inputs)).known[Key("layer")], Shared)


def test_rows_in_an_order_of_their_own_are_told_apart_where_they_are_put_back() -> None:
    module, inputs = layers(), random(BATCH * 2, WIDTH)
    order = torch.tensor([3, 0, 6, 5, 1, 7, 2, 4])

    def losses() -> Tensor:
        return module(inputs[order]).sin().sum(1)[order.argsort()].view(BATCH, 2).sum(1)

    assert isinstance(hold(module, losses).known[Key("0")], Shared)


def test_examples_all_alike_are_told_apart_by_their_losses() -> None:
    module, inputs = layers(), random(1, 3, WIDTH).expand(BATCH, 3, WIDTH).transpose(0, 1).contiguous()
    hold(module, lambda: module(inputs).sin().sum((0, 2)))
