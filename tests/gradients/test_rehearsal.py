"""Rehearsals: whose rows are whose in a step that nobody has described, and what is read of it equals autograd.

The oracle takes the step's losses one example at a time. Where an example's loss holds others' rows (in-batch
negatives), its own gradient is the one that comes by its own rows: by a batch in which all others' inputs are detached.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ftrace.gradients import (
    Examples,
    GradientCapture,
    LayoutBook,
    PerExampleGradients,
    Rehearsal,
    Shared,
    UnreadableError,
)
from ftrace.gradients.layout_book import Key
from ftrace.gradients.layouts import Layout
from ftrace.gradients.steps import sources_of
from helpers import oracle
from helpers.rehearsal_step import Batch, Step, random, randomised

BATCH, PLACES, WIDTH = 4, 3, 6


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
    recording = capture.start(examples.total, loaders=examples.loaders, book=book)

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


@pytest.mark.parametrize("places", [1, 3, 4, 8])
@pytest.mark.parametrize("order", ["blocks", "side by side", "time first", "time first, flat"])
def test_orders_of_rows(order: str, places: int) -> None:
    module = layers()
    pairs = {"chosen": random(BATCH, places, WIDTH), "rejected": random(BATCH, places, WIDTH, seed=2)}

    def losses(batch: Batch) -> Tensor:
        chosen, rejected = batch["chosen"], batch["rejected"]
        if order == "blocks":
            return preference(*module(torch.cat([chosen, rejected])).chunk(2))
        if order == "side by side":
            found = module(torch.stack([chosen, rejected], 1).flatten(0, 1)).view(BATCH, 2, places, WIDTH)
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
    first, second = (random(size, PLACES, WIDTH, seed=seed) for seed, size in enumerate(sizes))
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


class Positioned(nn.Module):
    """Positions, prompts that go through a layer, and a scale that its layer returns, before a head."""

    def __init__(self, prompts: int = 4) -> None:
        super().__init__()
        self.positions, self.prompts = nn.Embedding(PLACES, WIDTH), nn.Embedding(prompts, WIDTH)
        self.encoder, self.body = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale, self.head = Scale(), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        prompts = self.encoder(self.prompts(torch.arange(self.prompts.num_embeddings))).tanh()
        x = self.body(x + self.positions(torch.arange(PLACES)))
        rows = torch.cat([prompts.expand(len(x), -1, -1), x], 1)
        rows = (rows @ rows.transpose(1, 2) * self.scale()).softmax(-1) @ rows
        return self.head(rows)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        return self.value.exp()


@pytest.mark.parametrize("prompts", [1, 4, 8])
def test_layers_that_no_input_reaches(prompts: int) -> None:
    module, batch = randomised(Positioned(prompts)), {"x": random(BATCH, PLACES, WIDTH)}

    def losses(batch: Batch) -> Tensor:
        return module(batch["x"]).sin().flatten(1).sum(1)

    rehearsal = hold(module, Step(lambda rows: [losses(rows).mean()], batch), shares(losses, batch))
    for path in ("positions", "prompts", "encoder", "scale"):
        assert isinstance(rehearsal.book.known[Key(path)], Shared)
        assert Key(path) in rehearsal.book.verified


def test_layers_that_neither_inputs_nor_gradients_reach_at_first() -> None:
    """A head that begins at zero."""
    module, batch = randomised(Positioned()), {"x": random(BATCH, PLACES, WIDTH)}
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
                return self.head(self.body(x * self.positions(torch.arange(PLACES)).mean(0) + prompts.sin().sum(0)))
            return super().forward(x)

    module, batch, book = randomised(Varied()), {"x": random(BATCH, PLACES, WIDTH)}, LayoutBook()

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
    module, batch = randomised(Positioned()), {"x": random(BATCH, PLACES, WIDTH)}

    def losses(rows: Tensor) -> list[Tensor]:
        hidden = module.body(rows + module.positions(torch.arange(PLACES))).square().flatten(1).sum(1)
        whole = module(rows).sin().flatten(1).sum(1)
        found = [hidden, whole] if not retains else [whole.cos(), whole * hidden]
        return found if order == "body first" else found[::-1]

    def alone(example: int) -> Tensor:
        return sum(of_one[example] / BATCH for of_one in losses(batch["x"]))

    hold(module, Step(lambda rows: [of_all.mean() for of_all in losses(rows["x"])], batch, retains=retains), alone)


def test_losses_of_two_networks_that_take_turns() -> None:
    """A critic whose weights are switched off while the other's loss is differentiated."""
    first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
    module, batch = randomised(nn.ModuleList([first, second])), {"x": random(BATCH, PLACES, WIDTH)}

    def losses(rows: Tensor) -> list[Tensor]:
        made = first(rows).tanh()
        return [second(made).sin().flatten(1).sum(1), second(made.detach()).cos().flatten(1).sum(1)]

    def alone(example: int) -> Tensor:
        return sum(of_one[example] / BATCH for of_one in losses(batch["x"]))

    hold(module, Step(lambda rows: [of_all.mean() for of_all in losses(rows["x"])], batch), alone)


def test_one_example() -> None:
    module, batch = randomised(Positioned()), {"x": random(1, PLACES, WIDTH)}

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
            self.scale = nn.Parameter(torch.ones(PLACES))

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
    mask = torch.zeros(BATCH, 1, PLACES, dtype=torch.float64)
    mask[::2, :, 2:] = -torch.inf
    batch = {"x": random(BATCH, PLACES, WIDTH), "mask": mask}

    def losses(batch: Batch) -> Tensor:
        return module(batch["x"], batch["mask"]).sin().flatten(1).sum(1)

    rehearsal = hold(module, Step(lambda rows: [losses(rows).mean()], batch), shares(losses, batch))
    assert Key("masked") in rehearsal.book.verified


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.second((hidden - hidden.mean(0)) / hidden.std(0))


def test_a_layer_that_mixes_examples_is_refused_by_name() -> None:
    module, batch = randomised(Normalised()), {"x": random(BATCH, PLACES, WIDTH)}
    with GradientCapture(module) as capture:
        step = Step(lambda rows: [module(rows["x"]).sin().mean()], batch)
        with pytest.raises(UnreadableError, match=r'parameters=\("\*", "!second.weight", "!second.bias"\)') as error:
            Rehearsal(capture, step, Examples(BATCH), LayoutBook()).find_rows()
    assert error.value.names == ("second.weight", "second.bias")


class Penalised(Positioned):
    """Takes the positions into the loss themselves: those that the batch got, or looked up once more."""

    def loss(self, x: Tensor, again: bool) -> Tensor:
        kept = []
        handle = self.positions.register_forward_hook(lambda layer, args, output: kept.append(output))
        loss = self(x).sin().mean()
        handle.remove()
        penalised = self.positions(torch.arange(PLACES)) if again else kept[0]
        return loss + 0.1 * penalised.square().sum()


@pytest.mark.parametrize("again", [False, True])
def test_a_penalty_on_what_no_input_reaches_is_refused_by_name(again: bool) -> None:
    module, batch = randomised(Penalised()), {"x": random(BATCH, PLACES, WIDTH)}
    step, book = Step(lambda rows: [module.loss(rows["x"], again)], batch), LayoutBook()
    message = r'layer .positions. .*parameters=\("\*", "!positions.weight"\)'
    with GradientCapture(module) as capture:
        rehearsal = Rehearsal(capture, step, Examples(BATCH), book)
        if not again:
            with pytest.raises(UnreadableError, match=message):
                rehearsal.find_rows()
            return
        # Nothing is known of the second look-up, so it is said in the step itself.
        rehearsal.find_rows()
        rehearsal.read(unprojected=True)
        assert not rehearsal.is_complete
        recording = capture.start(BATCH, book=book)
        loss = module.loss(batch["x"], again)
        recording.prepare([loss.grad_fn])
        recording.of_pass.open = set()
        loss.backward()
    with pytest.raises(UnreadableError, match=message):
        recording.gradients()


@pytest.mark.parametrize("use", ["its own", "all examples'", "mixed", "no example's"])
def test_inputs_without_an_axis_of_examples(use: str) -> None:
    """As many negatives as a multiple of the batch: gradients tell whose they are, unless they are nobody's."""
    module = layers()
    batch = {"x": random(BATCH, WIDTH), "negatives": random(3 * BATCH, WIDTH, seed=2)}

    def losses(rows: Batch) -> Tensor:
        own, negatives = module(rows["x"]), module(rows["negatives"])
        if use == "mixed":
            negatives = module(negatives - negatives.mean(0))
        if use == "all examples'":
            return (own @ negatives.T).logsumexp(1)
        return (own[:, None] - negatives.view(BATCH, 3, WIDTH)).square().mean((1, 2))

    def loss(rows: Batch) -> Tensor:
        return losses(rows).mean() + (module(rows["negatives"]).square().mean() if use == "no example's" else 0.0)

    step = Step(lambda rows: [loss(rows)], batch, kept=("negatives",))
    if use != "no example's":
        hold(module, step, shares(losses, batch))
        return
    with GradientCapture(module) as capture:
        rehearsal = Rehearsal(capture, step, Examples(BATCH), LayoutBook(), has_loose_inputs=True)
        with pytest.raises(UnreadableError, match=r'no axis of that many.*parameters=\("\*", "!0.weight"'):
            rehearsal.find_rows()


def test_rows_that_move_between_batches_are_found() -> None:
    module = layers()
    batch = {"x": random(BATCH, 2, WIDTH)}
    book = LayoutBook()
    is_turned = False

    def losses(rows: Batch) -> Tensor:
        if is_turned:
            return module(rows["x"].transpose(0, 1).flatten(0, 1)).sin().view(2, BATCH, WIDTH).sum((0, 2))
        return module(rows["x"].flatten(0, 1)).sin().view(BATCH, -1).sum(1)

    step = Step(lambda rows: [losses(rows).mean()], batch)
    rehearsal = hold(module, step, shares(losses, batch), book=book)
    with rehearsal.capture:
        assert all(rehearsal.confirm(which) == [] for which in range(6))
        is_turned = True
        rehearsal = Rehearsal(rehearsal.capture, step, Examples(BATCH), book)
        assert {key.path for key in rehearsal.confirm(1)} == {"0", "2", "4"}
    rehearsal = hold(module, step, shares(losses, batch), book=book)
    assert {key.path for key in rehearsal.changed} == {"0", "2", "4"}


@pytest.mark.parametrize("loaders", [(), (2, 4), (3, 3), (1, 5), (6, 0)])
def test_whose_inputs_an_example_gets(loaders: tuple[int, ...]) -> None:
    examples = Examples(6, loaders)
    members = torch.tensor([True, False, True, True, False, True])
    sources = sources_of(members, examples)
    for example, source in enumerate(sources):
        own = [loader for loader in range(len(loaders)) if example < sum(loaders[: loader + 1])][:1]
        if not members[example]:
            assert source == example
        elif own and loaders[own[0]] == 1:
            assert source == -1
        else:
            assert source not in (example, -1)
            if own:
                assert examples.first(own[0]) <= source < examples.first(own[0]) + examples.count(own[0])


def test_steps_are_run_as_often_as_is_said() -> None:
    module, batch = layers(), {"x": random(BATCH, PLACES, WIDTH)}
    step = Step(lambda rows: [module(rows["x"]).sin().mean()], batch)
    with GradientCapture(module) as capture:
        rehearsal = Rehearsal(capture, step, Examples(BATCH), LayoutBook())
        rehearsal.find_rows()
        rehearsal.read(unprojected=True)
    assert (step.runs.count(False), step.runs.count(True)) == (rehearsal.forwards, rehearsal.backwards)
    assert all(parameter.grad is None for parameter in module.parameters())
