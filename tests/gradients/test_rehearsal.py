"""Rehearsals: whose rows are whose in a step that nobody has described, and what is read of it equals autograd.

The oracle takes the step's losses one example at a time. Where an example's loss holds others' rows (in-batch
negatives), its own gradient is the one that comes by its own rows: by a batch in which all others' inputs are detached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ftrace.gradients import (
    Examples,
    LayoutBook,
    Shared,
    UnreadableError,
)
from ftrace.gradients.layout_book import Key
from ftrace.gradients.layouts import Layout
from helpers.held_rehearsal import BATCH, POSITIONS, WIDTH, Positioned, hold, layers, preference, shares
from helpers.rehearsal_step import Batch, Step, random, randomised


@pytest.mark.parametrize("positions", [1, 3, 4, 8])
@pytest.mark.parametrize("order", ["blocks", "side by side", "time first", "time first, flat"])
def test_orders_of_rows(order: str, positions: int) -> None:
    module = layers()
    pairs = {"chosen": random(BATCH, positions, WIDTH), "rejected": random(BATCH, positions, WIDTH, seed=2)}

    def losses(batch: Batch) -> Tensor:
        chosen, rejected = batch["chosen"], batch["rejected"]
        if order == "blocks":
            return preference(*module(torch.cat([chosen, rejected])).chunk(2))
        if order == "side by side":
            found = module(torch.stack([chosen, rejected], 1).flatten(0, 1)).view(BATCH, 2, positions, WIDTH)
            return preference(found[:, 0], found[:, 1])
        rows = torch.cat([chosen, rejected], 1).transpose(0, 1).contiguous()
        found = module(rows.flatten(0, 1)).view(rows.shape) if order == "time first, flat" else module(rows)
        return preference(*found.transpose(0, 1).chunk(2, 1))

    rehearsal = hold(module, Step(lambda batch: [losses(batch).mean()], pairs), shares(losses, pairs))
    layout = {
        "blocks": Layout(before=None, after=1),
        "side by side": Layout(),
        "time first": Layout(1),
        "time first, flat": Layout(before=None, after=1),
    }[order]
    assert rehearsal.book.known[Key("0")] == layout
    assert rehearsal.backwards == 1 + BATCH  # all is told by values


def test_a_batch_whose_examples_run_along_its_second_axis() -> None:
    module, batch = layers(), {"time": random(BATCH, BATCH, WIDTH)}

    def losses(batch: Batch) -> Tensor:
        return module(batch["time"]).sin().sum((0, 2))

    rehearsal = hold(module, Step(lambda batch: [losses(batch).mean()], batch), shares(losses, batch))
    assert rehearsal.book.known[Key("0")] == Layout(1)


class DualEncoder(nn.Module):
    """Two towers, and a loss in which each example is told from all others."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.question = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
        self.answer = self.question if shared else nn.Linear(WIDTH, WIDTH)
        self.shared = shared

    def forward(self, questions: Tensor, answers: Tensor, own: Tensor | None = None) -> Tensor:
        """The mean loss; gradients flow by one example's rows only, if ``own`` is given."""
        if self.shared:
            first, second = self.question(torch.cat([questions, answers])).chunk(2)
        else:
            first, second = self.question(questions), self.answer(answers)
        if own is not None:
            first, second = (torch.where(own[:, None], rows, rows.detach()) for rows in (first, second))
        return F.cross_entropy(first @ second.T, torch.arange(len(first)))


@pytest.mark.parametrize("shared", [True, False])
def test_in_batch_negatives(shared: bool) -> None:
    """What comes by an example's own rows is its contribution; these sum to the gradient."""
    module = randomised(DualEncoder(shared))
    batch = {"questions": random(BATCH, WIDTH), "answers": random(BATCH, WIDTH, seed=2)}
    hold(
        module,
        Step(lambda rows: [module(rows["questions"], rows["answers"])], batch),
        lambda example: module(batch["questions"], batch["answers"], torch.arange(BATCH) == example),
    )


@pytest.mark.parametrize("sizes", [(2, 3), (3, 3), (4, 2), (1, 3), (3, 0), (1, 1)])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("kind", ["rules", "fallback", "shared"])
def test_several_dataloaders(sizes: tuple[int, int], together: bool, kind: str) -> None:
    made = {
        "rules": layers,
        "fallback": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.PReLU()),
        "shared": Positioned,
    }
    module = randomised(made[kind]())
    first, second = (random(size, POSITIONS, WIDTH, seed=seed) for seed, size in enumerate(sizes))
    total = sum(sizes)

    @dataclass
    class OfGroups(Step):
        def exchanged(self, sources: Sequence[int] | None, stirred: bool) -> Batch:
            if sources is None:
                return self.batch
            made, begin = {}, 0
            for (name, tensor), size in zip(self.batch.items(), sizes, strict=True):
                own = [source - begin if source >= 0 else -1 for source in sources[begin : begin + size]]
                assert all(-1 <= source < size for source in own)
                turned = tensor.roll(1, -1) if own and own[0] < 0 else tensor
                made[name] = turned[torch.tensor(own, dtype=torch.long).clamp_min(0)]
                begin += size
            return made

    def losses(batch: Batch) -> Tensor:
        if together:
            rows = module(torch.cat([batch["second"], batch["first"]]))  # in another order than that of their ids
            rows = torch.cat([rows[sizes[1] :], rows[: sizes[1]]])
        else:
            rows = torch.cat([module(batch[name]) for name in ("first", "second")])
        return rows.sin().flatten(1).sum(1)

    batch = {"first": first, "second": second}
    step = OfGroups(lambda rows: [losses(rows).mean()], batch)
    alone = shares(losses, batch)
    if together and 0 not in sizes:
        # No layout has such an order; nor is it taken for another.
        with pytest.raises(UnreadableError, match=r'parameters=\("\*", "!\w+.\w+"'):
            hold(module, step, alone, Examples(total, sizes))
    else:
        hold(module, step, alone, Examples(total, sizes))


@pytest.mark.parametrize("prompts", [1, 4, 8])
def test_layers_that_no_input_reaches(prompts: int) -> None:
    module, batch = randomised(Positioned(prompts)), {"x": random(BATCH, POSITIONS, WIDTH)}

    def losses(batch: Batch) -> Tensor:
        return module(batch["x"]).sin().flatten(1).sum(1)

    rehearsal = hold(module, Step(lambda rows: [losses(rows).mean()], batch), shares(losses, batch))
    for path in ("positions", "prompts", "encoder", "scale"):
        assert isinstance(rehearsal.book.known[Key(path)], Shared)
        assert Key(path) in rehearsal.book.verified


def test_layers_that_neither_inputs_nor_gradients_reach_at_first() -> None:
    """A head that begins at zero."""
    module, batch = randomised(Positioned()), {"x": random(BATCH, POSITIONS, WIDTH)}
    nn.init.zeros_(module.head.weight)
    book = LayoutBook()

    def losses(batch: Batch) -> Tensor:
        return module(batch["x"]).sin().flatten(1).sum(1)

    step = Step(lambda rows: [losses(rows).mean()], batch)
    hold(module, step, shares(losses, batch), book=book)
    assert {Key("body"), Key("head")} <= book.verified
    assert not {Key("positions"), Key("prompts"), Key("encoder")} & book.verified
    nn.init.normal_(module.head.weight)
    hold(module, step, shares(losses, batch), book=book)
    assert {Key("positions"), Key("prompts"), Key("encoder"), Key("scale")} <= book.verified


def test_a_way_that_was_never_seen_is_learned_and_others_are_kept() -> None:
    class Varied(Positioned):
        is_turned = False

        def forward(self, x: Tensor) -> Tensor:
            if self.is_turned:
                prompts = self.encoder(self.prompts(torch.arange(4)))
                return self.head(self.body(x * self.positions(torch.arange(POSITIONS)).mean(0) + prompts.sin().sum(0)))
            return super().forward(x)

    module, batch, book = randomised(Varied()), {"x": random(BATCH, POSITIONS, WIDTH)}, LayoutBook()

    def losses(batch: Batch) -> Tensor:
        return module(batch["x"]).sin().flatten(1).sum(1)

    step = Step(lambda rows: [losses(rows).mean()], batch)
    hold(module, step, shares(losses, batch), book=book)
    module.is_turned = True
    hold(module, step, shares(losses, batch), book=book, again={Key("positions"), Key("prompts"), Key("encoder")})
    for module.is_turned in (False, True):
        hold(module, step, shares(losses, batch), book=book)
    for path in ("positions", "prompts", "encoder"):
        known = book.known[Key(path)]
        assert isinstance(known, Shared)
        assert len(known.ways) == 2


@pytest.mark.parametrize("retains", [True, False])
@pytest.mark.parametrize("order", ["body first", "head first"])
def test_a_step_with_several_losses(retains: bool, order: str) -> None:
    """By manual optimization: each with a graph of its own, or two losses on one."""
    module, batch = randomised(Positioned()), {"x": random(BATCH, POSITIONS, WIDTH)}

    def losses(rows: Tensor) -> list[Tensor]:
        hidden = module.body(rows + module.positions(torch.arange(POSITIONS))).square().flatten(1).sum(1)
        whole = module(rows).sin().flatten(1).sum(1)
        found = [hidden, whole] if not retains else [whole.cos(), whole * hidden]
        return found if order == "body first" else found[::-1]

    def alone(example: int) -> Tensor:
        return sum(of_one[example] / BATCH for of_one in losses(batch["x"]))

    hold(module, Step(lambda rows: [of_all.mean() for of_all in losses(rows["x"])], batch, retains=retains), alone)


def test_losses_of_two_networks_that_take_turns() -> None:
    """A critic whose weights are switched off while the other's loss is differentiated."""
    first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
    module, batch = randomised(nn.ModuleList([first, second])), {"x": random(BATCH, POSITIONS, WIDTH)}

    def losses(rows: Tensor) -> list[Tensor]:
        made = first(rows).tanh()
        return [second(made).sin().flatten(1).sum(1), second(made.detach()).cos().flatten(1).sum(1)]

    def alone(example: int) -> Tensor:
        return sum(of_one[example] / BATCH for of_one in losses(batch["x"]))

    hold(module, Step(lambda rows: [of_all.mean() for of_all in losses(rows["x"])], batch), alone)


def test_one_example() -> None:
    module, batch = randomised(Positioned()), {"x": random(1, POSITIONS, WIDTH)}

    def losses(batch: Batch) -> Tensor:
        return module(batch["x"]).sin().flatten(1).sum(1)

    hold(module, Step(lambda rows: [losses(rows).mean()], batch), shares(losses, batch), Examples(1))


@pytest.mark.parametrize("count", [2, 3, 5, 9, 33, 70])
def test_batches_of_many_sizes(count: int) -> None:
    module, batch = layers()[:3], {"x": random(count, 2, WIDTH), "y": random(count, 2, WIDTH, seed=2)}

    def losses(batch: Batch) -> Tensor:
        return preference(*module(torch.cat([batch["x"], batch["y"]])).chunk(2))

    hold(module, Step(lambda rows: [losses(rows).mean()], batch), shares(losses, batch), Examples(count))


@pytest.mark.parametrize("alike", [[1, 2, 3], [0, 1], [0, 2]])
@pytest.mark.parametrize("masked", [True, False])
def test_examples_that_are_alike(alike: list[int], masked: bool) -> None:
    """Where inputs change nothing, gradients tell."""
    module = layers()[:3]
    batch = {name: random(BATCH, WIDTH, seed=seed) for seed, name in enumerate(("chosen", "rejected"))}
    for tensor in batch.values():
        tensor[alike] = tensor[alike[0]].clone()
    weights = torch.tensor([1.0, 2, 0 if masked else 3, 4])

    def losses(batch: Batch) -> Tensor:
        return preference(*module(torch.cat([batch["chosen"], batch["rejected"]])).chunk(2)) * weights

    rehearsal = hold(module, Step(lambda rows: [losses(rows).mean()], batch), shares(losses, batch))
    assert rehearsal.book.known[Key("0")] == Layout(before=None, after=1)


def test_masks_of_infinities() -> None:
    class Masked(nn.Module):
        """A layer without a rule, whose input and output are masked."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(POSITIONS))

        def forward(self, scores: Tensor, mask: Tensor) -> Tensor:
            return (scores * self.scale.exp()).masked_fill(mask == -torch.inf, -torch.inf)

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.masked = nn.Linear(WIDTH, WIDTH), Masked()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            hidden = self.body(x)
            return self.masked(hidden @ hidden.transpose(1, 2), mask).softmax(-1) @ hidden

    module = randomised(Scores())
    mask = torch.zeros(BATCH, 1, POSITIONS, dtype=torch.float64)
    mask[::2, :, 2:] = -torch.inf
    batch = {"x": random(BATCH, POSITIONS, WIDTH), "mask": mask}

    def losses(batch: Batch) -> Tensor:
        return module(batch["x"], batch["mask"]).sin().flatten(1).sum(1)

    rehearsal = hold(module, Step(lambda rows: [losses(rows).mean()], batch), shares(losses, batch))
    assert Key("masked") in rehearsal.book.verified
