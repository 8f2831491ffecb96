"""Rows that a step arranges itself, in an order, in chunks, in graphs: right, or refused with a remedy that works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ftrace.callbacks import SelfCheckError
from helpers import own_parts
from helpers.oracle import relative_error
from helpers.own_parts import (
    CLASSES,
    QUERIES,
    RATE,
    WIDTH,
    Own,
    batches,
    by_hand,
    gaussian,
    losses,
    mean_loss,
    mlp,
    share,
)
from helpers.positions import Positions, square

Step = Callable[[Any, Any], Tensor]


# What can't be told


def in_order_of_length(module: Any, batch: Any) -> Tensor:
    order = batch["n"].argsort()
    return F.cross_entropy(module.net(batch["x"][order]), batch["y"][order])


def with_lengths(lengths: list[int], count: int) -> list[Any]:
    """The first batch is in order."""
    return [
        {**batch, "n": torch.arange(4) if i == 0 else torch.tensor(lengths)} for i, batch in enumerate(batches(count))
    ]


def test_rows_that_move_from_batch_to_batch_are_found_out(tmp_path: Path) -> None:
    module = Own(in_order_of_length, net=mlp())
    with pytest.raises(SelfCheckError, match=r"'net\.0' are not where they were .* Order examples in the loader"):
        own_parts.traced(module, with_lengths([3, 0, 2, 1], 250), tmp_path)
    ordered = [
        {name: own[batch["n"].argsort()] for name, own in batch.items()} for batch in with_lengths([3, 0, 2, 1], 250)
    ]
    module = Own(in_order_of_length, net=mlp())
    right = by_hand(module, ordered, share, total=in_order_of_length)
    store = own_parts.traced(module, ordered, tmp_path / "again")
    assert relative_error(own_parts.found(store), right) < 1e-9


def test_an_order_of_the_steps_own_is_refused(tmp_path: Path) -> None:
    data = [{**batch, "n": torch.tensor([3, 0, 2, 1])} for batch in batches()]
    with pytest.raises(ValueError, match=r"can't be told apart.*none would be left"):
        own_parts.traced(Own(in_order_of_length, net=mlp()), data, tmp_path)


class LateGradient(Own):
    """A head that stays zero for a while, so that nothing else has a gradient."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.trainer.optimizers[0].param_groups[0]["lr"] = 0.0 if batch_idx < 6 else RATE


def late_gradient(length: int) -> LateGradient:
    module = LateGradient(mean_loss, net=Positions(length))
    nn.init.zeros_(module.net.rest[2].weight)
    nn.init.zeros_(module.net.rest[2].bias)
    return module


@pytest.mark.parametrize("self_check", [True, False])
def test_positions_that_may_be_taken_for_rows_are_right_when_they_get_a_gradient(
    self_check: bool, tmp_path: Path
) -> None:
    """As many positions as examples, and a first gradient after the batches that are looked at."""
    data, asked = square(count=9), square("query_id", 1)
    right = by_hand(late_gradient(4), data[6:], share, asked, total=mean_loss)
    store = own_parts.traced(late_gradient(4), data, tmp_path, asked, self_check=self_check)
    assert relative_error(own_parts.found(store)[24:], right) < 1e-9


def test_a_late_gradient_is_right_where_positions_are_told_by_their_number(tmp_path: Path) -> None:
    data = [{**own, "x": own["x"][:, :3]} for own in square(count=9)]
    asked = [{**own, "x": own["x"][:, :3]} for own in square("query_id", 1)]
    right = by_hand(late_gradient(3), data[6:], share, asked, total=mean_loss)
    store = own_parts.traced(late_gradient(3), data, tmp_path, asked)
    assert relative_error(own_parts.found(store)[24:], right) < 1e-9
    assert not own_parts.found(store)[:24].any()


# Steps that go through rows by themselves, and modules that do so


def in_chunks(net: Any, x: Tensor, by: Tensor | None = None) -> Tensor:
    return torch.cat([net(own) for own in x.split(2)])


def one_by_one_rows(net: Any, x: Tensor, by: Tensor | None = None) -> Tensor:
    return torch.cat([net(own[None]) for own in x])


def sorted_rows(net: Any, x: Tensor, by: Tensor | None = None) -> Tensor:
    order = x[:, 0].argsort()
    return net(x[order])[order.argsort()]


def chosen_rows(net: Any, x: Tensor, by: Tensor | None = None) -> Tensor:
    chosen = x[:, 0] > -0.5
    return torch.zeros(len(x), CLASSES).double().index_put((chosen.nonzero()[:, 0],), net(x[chosen]))


class Arranges(nn.Module):
    """Does within a module what a step may not."""

    def __init__(self, how: Callable[..., Tensor]) -> None:
        super().__init__()
        self.inner, self.how = mlp(), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.inner, x)


@pytest.mark.parametrize("how", [in_chunks, one_by_one_rows, sorted_rows, chosen_rows])
def test_rows_that_a_step_arranges_are_refused_and_a_module_may_arrange_them(
    how: Callable[..., Tensor], tmp_path: Path
) -> None:
    def step(module: Any, batch: Any) -> Tensor:
        return F.cross_entropy(how(module.net, batch["x"]), batch["y"])

    with pytest.raises(ValueError, match="forward of a module that returns one row for each example"):
        own_parts.traced(Own(step, net=mlp()), batches(), tmp_path)
    right = by_hand(Own(mean_loss, net=Arranges(how)), batches(), share, total=mean_loss)
    store = own_parts.traced(Own(mean_loss, net=Arranges(how)), batches(), tmp_path / "again")
    assert relative_error(own_parts.found(store), right) < 1e-9


def test_rows_that_a_step_chooses_later_are_refused_by_name(tmp_path: Path) -> None:
    """As many as there are examples in the first batch, and fewer later."""

    def choosing(module: Any, batch: Any) -> Tensor:
        chosen = batch["x"][:, 0] > -0.5
        return F.cross_entropy(module.net(batch["x"][chosen]), batch["y"][chosen])

    def weighting(module: Any, batch: Any) -> Tensor:
        weights = (batch["x"][:, 0] > -0.5).double()
        return (losses(module, batch) * weights).sum() / weights.sum()

    def of_example(module: Any, batch: Any, i: int) -> Tensor:
        weights = (batch["x"][:, 0] > -0.5).double()
        return losses(module, batch)[i] * weights[i] / weights.sum()

    data = batches()
    data[0]["x"] = data[0]["x"].abs()
    message = r"layer 'net\.0' .*returned shape \(\d, 5\) for 4 .* weight of 0"
    with pytest.raises(ValueError, match=message):
        own_parts.traced(Own(choosing, net=mlp()), data, tmp_path)

    def beside(module: Any, batch: Any) -> Tensor:
        return choosing(module, batch) + F.cross_entropy(module.other(batch["x"]), batch["y"])

    def asked(module: Any, batch: Any) -> Tensor:
        return losses(module, batch) + F.cross_entropy(module.other(batch["x"]), batch["y"], reduction="none")

    with pytest.raises(ValueError, match=message.split(" .*")[0]) as raised:
        own_parts.traced(Own(beside, net=mlp(), other=nn.Linear(WIDTH, CLASSES)), data, tmp_path, QUERIES, asked)
    parameters = ("*", "!net.0.weight", "!net.0.bias", "!net.2.weight", "!net.2.bias")
    assert f"parameters={parameters}".replace("'", '"') in str(raised.value)
    own_parts.traced(
        Own(beside, net=mlp(), other=nn.Linear(WIDTH, CLASSES)),
        data,
        tmp_path / "b",
        QUERIES,
        asked,
        parameters=parameters,
    )
    right = by_hand(Own(weighting, net=mlp()), data, of_example, total=choosing)
    store = own_parts.traced(Own(weighting, net=mlp()), data, tmp_path / "again")
    assert relative_error(own_parts.found(store), right) < 1e-9


def graphs(sizes: list[list[int]], key: str = "example_id") -> list[Any]:
    """Nodes of all graphs below each other, and how many each graph has."""
    return [
        {
            "nodes": gaussian(sum(own), WIDTH, seed=i),
            "n": torch.tensor(own),
            "y": torch.arange(len(own)) % CLASSES,
            key: torch.arange(len(own)) + 10 * i,
        }
        for i, own in enumerate(sizes)
    ]


def graph_losses(module: Any, batch: Any) -> Tensor:
    """Of nodes below each other, or padded."""
    hidden = torch.tanh(module.inner(batch["nodes"]))
    if hidden.ndim == 3:
        real = (torch.arange(hidden.shape[1]) < batch["n"][:, None])[..., None]
        pooled = (hidden * real).sum(1)
    else:
        pooled = torch.stack([own.sum(0) for own in hidden.split(batch["n"].tolist())])
    return F.cross_entropy(module.head(pooled), batch["y"], reduction="none")


def padded(batch: Any) -> Any:
    rows = batch["nodes"].split(batch["n"].tolist())
    return {**batch, "nodes": nn.utils.rnn.pad_sequence(list(rows), batch_first=True)}


def graph_step(module: Any, batch: Any) -> Tensor:
    return graph_losses(module, batch).mean()


def of_graph(module: Any, batch: Any, i: int) -> Tensor:
    return graph_losses(module, batch)[i] / len(batch["n"])


def graph_net(step: Step = graph_step) -> Own:
    torch.manual_seed(0)
    return Own(step, inner=nn.Linear(WIDTH, 5), head=nn.Linear(5, CLASSES))


SIZES, ASKED_SIZES = [[1, 2, 3, 1, 4], [2, 2, 1, 3, 1], [3, 1, 1, 1, 2]], [[1, 2, 3]]


def test_sizes_that_can_not_be_exchanged_are_left_as_they_are(tmp_path: Path) -> None:
    """A step that fails with other sizes: nodes are told apart by where they meet the graphs."""
    data, asked = graphs(SIZES), graphs(ASKED_SIZES, "query_id")
    module = graph_net()
    right = by_hand(module, data, of_graph, asked, graph_losses, graph_step)
    store = own_parts.traced(module, data, tmp_path, asked, graph_losses)
    assert relative_error(own_parts.found(store), right) < 1e-9


def test_a_step_in_which_nothing_can_be_exchanged_is_refused_and_padding_helps(tmp_path: Path) -> None:
    def unlabelled(module: Any, batch: Any) -> Tensor:
        return graph_losses(module, {**batch, "y": torch.zeros(len(batch["n"])).long()})

    def step(module: Any, batch: Any) -> Tensor:
        return unlabelled(module, batch).mean()

    data = [{name: own for name, own in batch.items() if name != "y"} for batch in graphs(SIZES)]
    asked = graphs(ASKED_SIZES, "query_id")
    with pytest.raises(ValueError, match=r"fails when some examples have others' inputs \(RuntimeError.* padded"):
        own_parts.traced(graph_net(step), data, tmp_path, asked, unlabelled)
    right = by_hand(graph_net(step), data, lambda m, b, i: unlabelled(m, b)[i] / len(b["n"]), asked, unlabelled, step)
    store = own_parts.traced(
        graph_net(step), list(map(padded, data)), tmp_path / "again", list(map(padded, asked)), unlabelled
    )
    assert relative_error(own_parts.found(store), right) < 1e-9


def test_a_term_of_constant_points_is_refused_by_name(tmp_path: Path) -> None:
    """As many points as a multiple of the batch, but no example's: they would pass for examples side by side."""
    points = torch.linspace(-1, 1, 12 * WIDTH).view(12, WIDTH).double()
    module = Own(lambda m, b: mean_loss(m, b) + m.other(points).square().mean(), net=mlp(), other=nn.Linear(WIDTH, 2))
    with pytest.raises(ValueError, match=r"changes with no example's inputs.*!other.weight"):
        own_parts.traced(module, batches(4), tmp_path)
