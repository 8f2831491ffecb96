"""Whose rows are whose, in training steps that arrange their batches in all sorts of ways: against plain autograd.

Scores of a run are compared with training by hand, where one example after another is differentiated by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ftrace.callbacks import GradientIndexWriter
from ftrace.gradients import Dense, PerExampleGradients, project
from ftrace.index import GradientIndex
from helpers import own_parts
from helpers.oracle import relative_error
from helpers.own_parts import CLASSES, QUERIES, WIDTH, Own, batches, by_hand, gaussian, losses, mean_loss, mlp, share
from helpers.positions import Positions, square

LENGTH = 3
Step = Callable[[Any, Any], Tensor]
Share = Callable[[Any, Any, int], Tensor]


def with_more(made: list[Any], **shapes: tuple[int, ...]) -> list[Any]:
    """Batches with further tensors of random numbers."""
    return [
        {**batch, **{name: gaussian(*shape, seed=17 * i + len(name)) for name, shape in shapes.items()}}
        for i, batch in enumerate(made)
    ]


@dataclass
class Case:
    """A step, and what of it is one example's.

    Args:
        make: Makes the module.
        share: Example i's part of the loss.
        data: Batches.
        whole: What the step differentiates; None where the shares don't add up to it.
        plain: Makes the module that is trained by hand, where that is another one.
    """

    make: Callable[[], Any]
    share: Share = share
    data: list[Any] = field(default_factory=batches)
    queries: list[Any] = field(default_factory=lambda: QUERIES)
    losses: Step = losses
    whole: Step | None = None
    online: dict[str, Any] = field(default_factory=dict)
    ids: Callable[[Any], Tensor] = lambda batch: batch["example_id"]
    plain: Callable[[], Any] | None = None


# Pairs


def preference(better: Tensor, worse: Tensor) -> Tensor:
    return -F.logsigmoid(2 * (better.sum(1) - worse.sin().sum(1)))


def pairs_side_by_side(module: Any, batch: Any) -> Tensor:
    rows = torch.stack([batch["x"], batch["rejected"]], 1).flatten(0, 1)
    scores = module.net(rows).unflatten(0, (-1, 2))
    return preference(scores[:, 0], scores[:, 1]).mean()


def pairs_in_blocks(module: Any, batch: Any) -> Tensor:
    return preference(*module.net(torch.cat([batch["x"], batch["rejected"]])).chunk(2)).mean()


def of_pair(module: Any, batch: Any, i: int) -> Tensor:
    better, worse = module.net(batch["x"][i : i + 1]), module.net(batch["rejected"][i : i + 1])
    return preference(better, worse).sum() / len(batch["x"])


def two_views(module: Any, batch: Any) -> Tensor:
    first, second = module.net(torch.cat([batch["x"], batch["x"] + batch["noise"]], 0)).chunk(2)
    return F.mse_loss(first, second) + F.cross_entropy(first, batch["y"])


def of_views(module: Any, batch: Any, i: int) -> Tensor:
    x, noise = batch["x"][i : i + 1], batch["noise"][i : i + 1]
    first = module.net(x)
    distance = F.mse_loss(first, module.net(x + noise)) + F.cross_entropy(first, batch["y"][i : i + 1])
    return distance / len(batch["x"])


def repeated(times: int, *, tiled: bool) -> tuple[Step, Share]:
    """Several noisy copies of each example, side by side or one batch after another."""

    def rows(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
        x, y = batch["x"], batch["y"]
        spread = (lambda t: t.repeat(times, *[1] * (t.ndim - 1))) if tiled else lambda t: t.repeat_interleave(times, 0)
        scale = torch.arange(1, times + 1).double()
        scale = scale.repeat_interleave(len(x)) if tiled else scale.repeat(len(x))
        return module.net(spread(x) * scale[:, None]), spread(y)

    def step(module: Any, batch: Any) -> Tensor:
        return F.cross_entropy(*rows(module, batch))

    def of_example(module: Any, batch: Any, i: int) -> Tensor:
        return step(module, {name: own[i : i + 1] for name, own in batch.items()}) / len(batch["x"])

    return step, of_example


# Losses that compare examples


def contrast(module: Any, batch: Any, alone: Callable[[Tensor], Tensor] = lambda rows: rows) -> Tensor:
    first, second = alone(module.net(batch["x"])), alone(module.other(batch["z"]))
    return F.cross_entropy(first @ second.T * module.net[0].weight.new_ones(()), torch.arange(len(first)))


def of_own_rows(module: Any, batch: Any, i: int) -> Tensor:
    """What flows back through one example's rows: the others' are constant."""

    def alone(rows: Tensor) -> Tensor:
        mask = (torch.arange(len(rows)) == i)[:, None]
        return torch.where(mask, rows, rows.detach())

    return contrast(module, batch, alone)


def contrast_losses(module: Any, batch: Any) -> Tensor:
    return (module.net(batch["x"]) * module.other(batch["x"])).sum(1)


# Time first


class Recurrent(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.LSTM(WIDTH, 5, num_layers=2, batch_first=how == "packed"), nn.Linear(5, CLASSES)
        self.how = how

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if self.how == "states":
            return self.head(self.inner(x)[1][0][-1])
        if self.how == "packed":
            assert lengths is not None
            rows = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.head(pad_packed_sequence(self.inner(rows)[0], batch_first=True)[0].sum(1))
        return self.head(self.inner(x)[0][-1])


def timed(length: int, size: int = 4, key: str = "example_id", count: int = 3) -> list[Any]:
    return [{**batch, "x": gaussian(length, size, WIDTH, seed=i)} for i, batch in enumerate(batches(count, size, key))]


def of_time_major(module: Any, batch: Any, i: int) -> Tensor:
    logits = module.net(batch["x"][:, i : i + 1])
    return F.cross_entropy(logits, batch["y"][i : i + 1]) / len(batch["y"])


def ragged(count: int = 3, size: int = 4, key: str = "example_id") -> list[Any]:
    generator = torch.Generator().manual_seed(2)
    return [
        {
            **batch,
            "x": gaussian(size, LENGTH, WIDTH, seed=i),
            "n": torch.randint(1, LENGTH + 1, (size,), generator=generator).clamp(max=LENGTH),
        }
        for i, batch in enumerate(batches(count, size, key))
    ]


def packed_losses(module: Any, batch: Any) -> Tensor:
    return F.cross_entropy(module.net(batch["x"], batch["n"]), batch["y"], reduction="none")


def of_packed(module: Any, batch: Any, i: int) -> Tensor:
    return packed_losses(module, {name: own[i : i + 1] for name, own in batch.items()}).sum() / len(batch["y"])


class TimeMajorTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.TransformerEncoderLayer(WIDTH, 2, 6, 0.0), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x).mean(0))


# Others


def head_at_zero() -> Own:
    module = Own(mean_loss, net=mlp())
    nn.init.zeros_(module.net[2].weight)
    nn.init.zeros_(module.net[2].bias)
    return module


def compiled(where: str) -> Callable[[], Own]:
    def make() -> Own:
        torch._dynamo.reset()
        module = Own(mean_loss, net=mlp())
        if where == "whole":
            module.net = torch.compile(module.net, backend="eager")
        else:
            module.net[0] = torch.compile(module.net[0], backend="eager")
        return module

    return make


def bags(key: str = "example_id", count: int = 3, size: int = 4) -> list[Any]:
    """Tokens of all examples in one row, and where each example's begin."""
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "tokens": torch.randint(9, (3 * size,), generator=generator),
            "begin": torch.arange(0, 3 * size, 3),
            **{name: own for name, own in batch.items() if name != "x"},
        }
        for batch in batches(count, size, key)
    ]


def bag_losses(module: Any, batch: Any) -> Tensor:
    return F.cross_entropy(module.net(module.bag(batch["tokens"], batch["begin"])), batch["y"], reduction="none")


def of_bag(module: Any, batch: Any, i: int) -> Tensor:
    return bag_losses(module, batch)[i] / len(batch["y"])


SIDE, BLOCKS = repeated(3, tiled=False), repeated(2, tiled=True)
PAIRED = with_more(batches(), rejected=(4, WIDTH), noise=(4, WIDTH), z=(4, WIDTH))
CASES = {
    "pairs side by side": Case(lambda: Own(pairs_side_by_side, net=mlp()), of_pair, PAIRED, whole=pairs_side_by_side),
    "pairs in blocks": Case(lambda: Own(pairs_in_blocks, net=mlp()), of_pair, PAIRED, whole=pairs_in_blocks),
    "two views": Case(lambda: Own(two_views, net=mlp()), of_views, PAIRED, whole=two_views),
    "copies side by side": Case(lambda: Own(SIDE[0], net=mlp()), SIDE[1], whole=SIDE[0]),
    "copies in blocks": Case(lambda: Own(BLOCKS[0], net=mlp()), BLOCKS[1], whole=BLOCKS[0]),
    "in-batch negatives": Case(
        lambda: Own(contrast, net=mlp(), other=mlp(1)), of_own_rows, PAIRED, losses=contrast_losses, whole=contrast
    ),
    "time-major LSTM": Case(
        lambda: Own(mean_loss, net=Recurrent("outputs")), of_time_major, timed(3), timed(3, 3, "query_id", 1),
        whole=mean_loss,
    ),
    "last states of an LSTM": Case(
        lambda: Own(mean_loss, net=Recurrent("states")), of_time_major, timed(3), timed(3, 3, "query_id", 1),
        whole=mean_loss,
    ),
    "as many steps as examples": Case(
        lambda: Own(mean_loss, net=Recurrent("outputs")), of_time_major, timed(4), timed(4, 4, "query_id", 1),
        whole=mean_loss,
    ),
    "as many steps as examples, attention": Case(
        lambda: Own(mean_loss, net=TimeMajorTransformer()), of_time_major, timed(4), timed(4, 4, "query_id", 1),
        whole=mean_loss,
    ),
    "as many positions as examples": Case(
        lambda: Own(mean_loss, net=Positions(4)), share, square(), square("query_id", 1), whole=mean_loss
    ),
    "packed sequences": Case(
        lambda: Own(lambda m, b: packed_losses(m, b).mean(), net=Recurrent("packed")), of_packed, ragged(),
        ragged(1, 3, "query_id"), packed_losses, whole=lambda m, b: packed_losses(m, b).mean(),
    ),
    "a head that starts at zero": Case(head_at_zero, whole=mean_loss),
    "a first batch of one": Case(
        lambda: Own(mean_loss, net=mlp()), share,
        [{name: own[:1] for name, own in batches()[0].items()}, *batches()[1:]],
        whole=mean_loss,
    ),
    "compiled": Case(compiled("whole"), whole=mean_loss, plain=lambda: Own(mean_loss, net=mlp())),
    "a compiled part": Case(compiled("part"), whole=mean_loss, plain=lambda: Own(mean_loss, net=mlp())),
    "bags with offsets": Case(
        lambda: Own(lambda m, b: bag_losses(m, b).mean(), net=mlp(), bag=nn.EmbeddingBag(9, WIDTH)), of_bag, bags(),
        bags("query_id", 1), bag_losses, whole=lambda m, b: bag_losses(m, b).mean(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_scores_are_those_of_plain_autograd(case: Case, tmp_path: Path) -> None:
    torch.manual_seed(4)
    module = case.make()
    plain = module if case.plain is None else case.plain()
    right = by_hand(plain, case.data, case.share, case.queries, case.losses, case.whole, case.ids)
    store = own_parts.traced(module, case.data, tmp_path, case.queries, case.losses, **case.online)
    assert relative_error(own_parts.found(store), right) < 1e-9
    checked = store.manifest["rows"]["single_examples"]
    assert not checked["never_checked"]
    assert not store.manifest["rows"]["left_out"]


# Rows of an index


@pytest.mark.parametrize(
    "name", ["pairs side by side", "pairs in blocks", "in-batch negatives", "last states of an LSTM", "two views"]
)
def test_rows_of_an_index_are_those_of_plain_autograd(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    module = case.make()
    expected = copy.deepcopy(module)
    writer = GradientIndexWriter(
        tmp_path / "index", parameters=("*",), layout="parameter", side=3, correction="none", dtype="float64"
    )
    own_parts.trainer(tmp_path, [writer], max_steps=1).fit(module, own_parts.loader(case.data))
    index = GradientIndex(tmp_path / "index")
    (segment,) = index.segments
    features = index.features(segment, expected)
    count = len(case.ids(case.data[0]))
    dense = own_parts.per_example(expected, [case.share(expected, case.data[0], i) for i in range(count)])
    named = dict(expected.named_parameters())
    parts = {
        name: [Dense(own.unflatten(1, tuple(named[name].shape)))]
        for name, own in zip(named, dense.split([p.numel() for p in named.values()], 1), strict=True)
    }
    gradients = PerExampleGradients(parts, {name: p.shape for name, p in named.items()}, count)
    right = features.rows(project(gradients, features.projection))
    found = segment.rows(0, count)
    assert list(segment.ids)[:count] == case.ids(case.data[0]).tolist()
    assert relative_error(found @ found.T, right @ right.T) < 1e-9
    assert relative_error(found, right) < 1e-9
