"""What is computed once for all examples: each example's own gradient of it, wherever it meets the batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ftrace.gradients import GradientCapture, Shared, UnreadableError
from ftrace.gradients.layout_book import Key
from helpers import oracle
from helpers.held_losses import hold
from helpers.rehearsal_step import random, randomised

BATCH, POSITIONS, WIDTH = 4, 3, 6


class Table(nn.Module):
    """A table of positions, or of prompts, that meets the batch in one of many ways, between layers on the batch."""

    def __init__(self, meet: str, positions: int = POSITIONS) -> None:
        super().__init__()
        self.meet = meet
        self.table, self.before, self.head = (
            nn.Embedding(positions, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        shared = self.table(torch.arange(self.table.num_embeddings))
        return self.head(MEETINGS[self.meet](self.before(x).tanh(), shared)).sin()


MEETINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "added": lambda x, shared: x + shared,
    "added, one axis more": lambda x, shared: x + shared[None],
    "multiplied": lambda x, shared: x * shared.sigmoid(),
    "subtracted in place": lambda x, shared: x.clone().sub_(shared),
    "expanded": lambda x, shared: torch.stack([x, shared.expand(len(x), -1, -1)]).prod(0),
    "expanded and turned": lambda x, shared: x + shared.T[None].expand(len(x), -1, -1).transpose(1, 2).contiguous(),
    "prompts before the batch": lambda x, shared: torch.cat([shared[None].expand(len(x), -1, -1), x], 1),
    "prompts repeated": lambda x, shared: torch.cat([shared.repeat(len(x), 1, 1), x], 1),
    "prompts as a list": lambda x, shared: torch.cat([torch.stack([shared] * len(x)), x], 1),
    "repeated rows": lambda x, shared: (
        x + shared.repeat_interleave(len(x), 0).view(POSITIONS, len(x), -1).transpose(0, 1)
    ),
    "matrix product": lambda x, shared: x @ (shared.T @ shared),
    "batched matrix product": lambda x, shared: torch.bmm(x, shared.expand(len(x), -1, -1).transpose(1, 2)) @ shared,
    "product from the left": lambda x, shared: (shared @ shared.T).softmax(-1) @ x,
    "einsum": lambda x, shared: torch.einsum("btd,sd->bts", x, shared) @ shared,
    "einsum of three": lambda x, shared: torch.einsum("btd,sd,se->bte", x, shared, shared.cos()),
    "linear": lambda x, shared: nn.functional.linear(x, shared.T @ shared, shared[0]),
    "attention": lambda x, shared: nn.functional.scaled_dot_product_attention(
        x, shared.expand(len(x), -1, -1), shared.sin().expand(len(x), -1, -1)
    ),
    "mean": lambda x, shared: x + shared.mean(0),
    "flattened": lambda x, shared: (x.flatten(1) + shared.flatten()).view_as(x),
    "viewed": lambda x, shared: x + shared.view(POSITIONS, 2, 3).transpose(1, 2).reshape(POSITIONS, WIDTH),
    "normalised": lambda x, shared: x + nn.functional.layer_norm(shared, (WIDTH,)),
    "used twice": lambda x, shared: (x + shared).sin() + shared,
    "used in two ways": lambda x, shared: (x + shared.cos()) @ (shared.T @ shared),
    "unbound": lambda x, shared: torch.stack([x[:, t] + own for t, own in enumerate(shared.unbind())], 1),
    "split": lambda x, shared: x + torch.cat([part * (n + 1) for n, part in enumerate(shared.split(2, 1))], 1),
    "chosen by each": lambda x, shared: x + shared[x[..., 0].argsort(1)],
    "where": lambda x, shared: torch.where(x > 0, x, shared),
    "set": lambda x, shared: torch.cat([x.clone().index_put_((torch.tensor([1]),), shared)[:, :2], x[:, 2:]], 1),
    "one number": lambda x, shared: x * shared.sum(),
    "one number, by itself first": lambda x, shared: x * (shared.square().mean() + shared.amax()).exp().sqrt(),
    "of the first example only": lambda x, shared: torch.cat([(x[:1] + shared), x[1:]]),
    "for two examples": lambda x, shared: x.index_add(0, torch.tensor([1, 3]), shared.expand(2, -1, -1)),
    "complex": lambda x, shared: torch.view_as_real(
        torch.view_as_complex(x.view(*x.shape[:-1], 3, 2))
        * torch.view_as_complex(shared.view(POSITIONS, 3, 2).contiguous())
    ).flatten(-2),
}


@pytest.mark.parametrize("meet", MEETINGS)
def test_wherever_it_meets_the_batch(meet: str) -> None:
    module, inputs = randomised(Table(meet)), random(BATCH, POSITIONS, WIDTH)
    book = hold(module, lambda: module(inputs).flatten(1).sum(1))
    assert isinstance(book.known[Key("table")], Shared)


@pytest.mark.parametrize("meet", ["added", "matrix product", "einsum", "used twice"])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_as_many_places_as_examples_and_other_sizes(meet: str, count: int) -> None:
    module, inputs = randomised(Table(meet)), random(count, POSITIONS, WIDTH)
    hold(module, lambda: module(inputs).flatten(1).sum(1), count)


@pytest.mark.parametrize("meet", MEETINGS)
def test_what_was_found_holds_in_batches_of_other_sizes(meet: str) -> None:
    """Or is found anew, as where nodes are as many as examples."""
    module = randomised(Table(meet))
    capture = GradientCapture(module)
    for count in (4, 5, 3):
        if count < 4 and meet == "for two examples":
            continue
        inputs = random(count, POSITIONS, WIDTH)
        with capture, capture.recording(count) as recording:
            recording.backward(module(inputs).flatten(1).sum(1))
        found = recording.gradients()
        rows = oracle.gradients(module, lambda x=inputs: module(x).flatten(1).sum(1))
        for name in rows[0]:
            expected = torch.stack([row[name] for row in rows])
            torch.testing.assert_close(found.dense(name), expected, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.filterwarnings("error")
def test_operators_without_a_form_for_batches_are_used_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MEETINGS, "unfolded", lambda x, shared: x + shared.cos().unfold(0, 2, 1).sum((0, 2)))
    module, inputs = randomised(Table("unfolded")), random(BATCH, POSITIONS, WIDTH)
    hold(module, lambda: module(inputs).flatten(1).sum(1))


class Varied(nn.Module):
    """A table that is used in another way when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.meet = "added"
        self.table, self.head = nn.Embedding(POSITIONS, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.table(torch.arange(POSITIONS))
        return self.head(MEETINGS[self.meet](x, shared)).sin()


def test_a_way_that_was_never_seen_before_is_learned() -> None:
    module, inputs = randomised(Varied()), random(BATCH, POSITIONS, WIDTH)
    capture = GradientCapture(module)
    for meet in MEETINGS:
        module.meet = meet
        hold(module, lambda: module(inputs).flatten(1).sum(1), BATCH, capture)
    module.meet = "added"
    hold(module, lambda: module(inputs).flatten(1).sum(1), BATCH, capture)


@pytest.mark.parametrize("meet", [meet for meet in MEETINGS if meet != "added"])
def test_a_way_that_was_never_seen_before_is_not_misread_in_training(meet: str) -> None:
    """A backward pass that nobody can repeat: what is read is right, or refused by name."""
    module, inputs = randomised(Varied()), random(BATCH, POSITIONS, WIDTH)
    capture = GradientCapture(module)
    hold(module, lambda: module(inputs).flatten(1).sum(1), BATCH, capture)
    module.meet = meet
    rows = oracle.gradients(module, lambda: module(inputs).flatten(1).sum(1))
    try:
        with capture, capture.recording(BATCH) as recording:
            module(inputs).sum().backward()
        found = recording.gradients()
    except UnreadableError as error:
        message = str(error)
    else:
        message = ""
        for name in rows[0]:
            expected = torch.stack([row[name] for row in rows])
            torch.testing.assert_close(found.dense(name), expected, rtol=1e-9, atol=1e-10, msg=name)
    assert not message or 'parameters=("*", "!table.weight")' in message


def test_what_is_left_for_later_is_an_error_when_gradients_are_read() -> None:
    """As in training, where a way that was never seen is looked at in the next batch."""
    module, inputs = randomised(Varied()), random(BATCH, POSITIONS, WIDTH)
    capture = GradientCapture(module)
    hold(module, lambda: module(inputs).flatten(1).sum(1), BATCH, capture)
    module.meet = "mean"
    with capture, capture.recording(BATCH) as recording:
        loss = module(inputs).sum()
        recording.prepare([loss.grad_fn])
        recording.of_pass.open = set()
        assert recording.unknown() == [Key("table")]
        loss.backward()
    assert recording.of_pass.open == {Key("table")}
    with pytest.raises(UnreadableError, match=r'parameters=\("\*", "!table.weight"\)'):
        recording.gradients()


def test_what_never_had_a_gradient_before_is_not_assumed_in_training() -> None:
    module, inputs = randomised(Layers(BATCH)), random(BATCH, POSITIONS, WIDTH)
    capture = GradientCapture(module)
    book = hold(module, lambda: module(inputs).flatten(1).sum(1), BATCH, capture).copy()
    for path in ("encoder.0", "encoder.2"):
        del book.known[Key(path)]
        book.verified.discard(Key(path))
    with capture:
        recording = capture.start(BATCH, book=book)
        loss = module(inputs).sum()
        recording.prepare([loss.grad_fn])
        recording.of_pass.open = set()
        loss.backward()
    with pytest.raises(UnreadableError, match=r"changes with no example's inputs.*!encoder\.2\.weight"):
        recording.gradients()


class TwoTables(nn.Module):
    """A table that meets the batch, or another table of as many rows as a few examples have."""

    def __init__(self) -> None:
        super().__init__()
        self.both = False
        self.table, self.other = nn.Embedding(2 * BATCH, WIDTH), nn.Embedding(2 * BATCH, WIDTH)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        shared, other = (table(torch.arange(2 * BATCH)) for table in (self.table, self.other))
        if self.both:
            return self.head((x + (shared + other)).sin())
        return self.head((x + shared).sin() + other)


def test_a_table_that_meets_another_table_first() -> None:
    """By its size the sum of two tables could be examples' rows."""
    module, inputs = randomised(TwoTables()), random(BATCH, 2 * BATCH, WIDTH)
    capture = GradientCapture(module)
    for module.both in (False, True, False):
        hold(module, lambda: module(inputs).sin().flatten(1).sum(1), BATCH, capture)


class BehindTheHead(nn.Module):
    """A table that is used once more after the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(POSITIONS, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.table(torch.arange(POSITIONS))
        return (self.head((x + shared).sin()) * shared).sin()


def test_a_use_after_the_last_layer_is_refused_where_nobody_has_said_where_backward_begins() -> None:
    module, inputs = randomised(BehindTheHead()), random(BATCH, POSITIONS, WIDTH)
    rows = oracle.gradients(module, lambda: module(inputs).flatten(1).sum(1))
    expected = torch.stack([row["table.weight"] for row in rows])
    with GradientCapture(module) as capture, capture.recording(BATCH) as recording:
        loss = module(inputs).sum()
        with pytest.raises(UnreadableError, match=r'parameters=\("\*", "!table.weight"\)'):
            loss.backward()
    with GradientCapture(module) as capture, capture.recording(BATCH) as recording:
        loss = module(inputs).sum()
        recording.prepare([loss.grad_fn])
        loss.backward()
    torch.testing.assert_close(recording.gradients().dense("table.weight"), expected, rtol=1e-9, atol=1e-10)


class Layers(nn.Module):
    """Whole layers on prompts, without a batch axis, as many as examples or a multiple of them."""

    def __init__(self, prompts: int) -> None:
        super().__init__()
        self.prompts = nn.Embedding(prompts, WIDTH)
        self.encoder = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        prompts = self.encoder(self.prompts(torch.arange(self.prompts.num_embeddings)))
        rows = torch.cat([prompts.expand(len(x), -1, -1), self.body(x)], 1)
        return self.head((rows @ rows.transpose(1, 2)).softmax(-1) @ rows).sin()


@pytest.mark.parametrize("prompts", [2, 4, 8])
def test_layers_on_prompts(prompts: int) -> None:
    module, inputs = randomised(Layers(prompts)), random(BATCH, POSITIONS, WIDTH)
    book = hold(module, lambda: module(inputs).flatten(1).sum(1))
    assert all(isinstance(book.known[Key(f"encoder.{n}")], Shared) for n in (0, 2, 3))


class Checkpointed(nn.Module):
    """Positions that meet the batch within activation checkpointing, and before it."""

    def __init__(self, reentrant: bool, inside: bool) -> None:
        super().__init__()
        self.reentrant, self.inside = reentrant, inside
        self.table, self.before, self.head = (
            nn.Embedding(POSITIONS, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 2),
        )

    def add(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        shared = self.table(torch.arange(POSITIONS)) if shared is None else shared
        return self.before(x).tanh() * shared.sin() + shared

    def forward(self, x: Tensor) -> Tensor:
        arguments = [x] if self.inside else [x, self.table(torch.arange(POSITIONS))]
        found = checkpoint(self.add, *arguments, use_reentrant=self.reentrant)
        return self.head(found).sin()


@pytest.mark.parametrize("inside", [True, False])
def test_activation_checkpointing(inside: bool) -> None:
    module, inputs = randomised(Checkpointed(False, inside)), random(BATCH, POSITIONS, WIDTH)
    hold(module, lambda: module(inputs).flatten(1).sum(1))


@pytest.mark.parametrize("inside", [True, False])
def test_reentrant_activation_checkpointing_is_refused_by_name(inside: bool) -> None:
    """Its graph does not show where shared outputs meet the batch."""
    module, inputs = randomised(Checkpointed(True, inside)), random(BATCH, POSITIONS, WIDTH).requires_grad_()
    with GradientCapture(module) as capture, capture.recording(BATCH) as recording:
        recording.of_pass.book.known[Key("table")] = Shared()
        loss = module(inputs).sum()
        with pytest.raises(UnreadableError, match=r'parameters=\("\*", "!table.weight"\)'):
            loss.backward()


def test_a_penalty_on_what_is_shared_is_refused_by_name() -> None:
    module, inputs = randomised(Varied()), random(BATCH, POSITIONS, WIDTH)
    with GradientCapture(module) as capture:
        with capture.recording(BATCH) as recording:
            recording.backward(module(inputs).flatten(1).sum(1))
        for only in (True, False):
            with capture.recording(BATCH) as recording:
                loss = module.table(torch.arange(POSITIONS)).square().sum()
                if not only:
                    loss = loss + module(inputs).sum()
                with pytest.raises(UnreadableError, match=r'parameters=\("\*", "!table.weight"\)'):
                    loss.backward()
