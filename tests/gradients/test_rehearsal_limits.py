"""Rehearsals where examples can't be told apart, are refused, or move between batches; and how often steps are run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ftrace.gradients import (
    Examples,
    GradientCapture,
    LayoutBook,
    Rehearsal,
    UnreadableError,
)
from ftrace.gradients.steps import sources_of
from helpers.held_rehearsal import BATCH, POSITIONS, WIDTH, Positioned, hold, layers, shares
from helpers.rehearsal_step import Batch, Step, random, randomised


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.second((hidden - hidden.mean(0)) / hidden.std(0))


def test_a_layer_that_mixes_examples_is_refused_by_name() -> None:
    module, batch = randomised(Normalised()), {"x": random(BATCH, POSITIONS, WIDTH)}
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
        penalised = self.positions(torch.arange(POSITIONS)) if again else kept[0]
        return loss + 0.1 * penalised.square().sum()


@pytest.mark.parametrize("again", [False, True])
def test_a_penalty_on_what_no_input_reaches_is_refused_by_name(again: bool) -> None:
    module, batch = randomised(Penalised()), {"x": random(BATCH, POSITIONS, WIDTH)}
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
    module, batch = layers(), {"x": random(BATCH, POSITIONS, WIDTH)}
    step = Step(lambda rows: [module(rows["x"]).sin().mean()], batch)
    with GradientCapture(module) as capture:
        rehearsal = Rehearsal(capture, step, Examples(BATCH), LayoutBook())
        rehearsal.find_rows()
        rehearsal.read(unprojected=True)
    assert (step.runs.count(False), step.runs.count(True)) == (rehearsal.forwards, rehearsal.backwards)
    assert all(parameter.grad is None for parameter in module.parameters())
