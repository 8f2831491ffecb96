"""Whose rows are whose, in training steps that arrange their batches in all sorts of ways: against plain autograd.

Scores of a run are compared with training by hand, where one example after another is differentiated by itself. What
can't be right must be refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ftrace.callbacks import GradientIndexWriter, SelfCheckError
from ftrace.gradients import Dense, PerExampleGradients, project
from ftrace.index import GradientIndex
from helpers import own_parts
from helpers.own_parts import CLASSES, QUERIES, RATE, WIDTH, Own, batches, by_hand, losses, mean_loss, mlp, share

LENGTH = 3
Step = Callable[[Any, Any], Tensor]
Share = Callable[[Any, Any, int], Tensor]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def with_more(made: list[Any], **shapes: tuple[int, ...]) -> list[Any]:
    """Batches with further tensors of random numbers."""
    return [
        {**batch, **{name: normal(*shape, seed=17 * i + len(name)) for name, shape in shapes.items()}}
        for i, batch in enumerate(made)
    ]


def relative_error(found: Tensor, right: Tensor) -> float:
    return float((found - right).abs().max() / right.abs().max())


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
    return [{**batch, "x": normal(length, size, WIDTH, seed=i)} for i, batch in enumerate(batches(count, size, key))]


def of_time_major(module: Any, batch: Any, i: int) -> Tensor:
    logits = module.net(batch["x"][:, i : i + 1])
    return F.cross_entropy(logits, batch["y"][i : i + 1]) / len(batch["y"])


def ragged(count: int = 3, size: int = 4, key: str = "example_id") -> list[Any]:
    generator = torch.Generator().manual_seed(2)
    return [
        {
            **batch,
            "x": normal(size, LENGTH, WIDTH, seed=i),
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


class Positions(nn.Module):
    """As many positions as examples: ``[T, WIDTH]`` is added to ``[B, T, WIDTH]``."""

    def __init__(self, length: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.rest, self.length = nn.Embedding(length, WIDTH), mlp(), length

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(torch.tanh(x + self.table(torch.arange(self.length))).mean(1))


def square(key: str = "example_id", count: int = 3, size: int = 4) -> list[Any]:
    return [{**batch, "x": normal(size, 4, WIDTH, seed=i)} for i, batch in enumerate(batches(count, size, key))]


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


# Several dataloaders, and several backward passes


def one_by_one(module: Any, batch: Any) -> Tensor:
    """The second dataloader's batch first."""
    return (losses(module, batch["b"]).sum() + losses(module, batch["a"]).sum()) / 6


def as_one(*names: str) -> Step:
    def step(module: Any, batch: Any) -> Tensor:
        return mean_loss(module, {key: torch.cat([batch[name][key] for name in names]) for key in ("x", "y")})

    return step


def of_either(module: Any, batch: Any, i: int) -> Tensor:
    return losses(module, {key: torch.cat([batch["a"][key], batch["b"][key]]) for key in ("x", "y")})[i] / 6


def of_both(batch: Any) -> Tensor:
    return torch.cat([batch["a"]["example_id"], batch["b"]["example_id"]])


@pytest.mark.parametrize("step", [one_by_one, as_one("a", "b")], ids=["second first", "as one"])
@pytest.mark.parametrize("sizes", [(2, 4), (3, 3)])
def test_batches_of_several_dataloaders(step: Step, sizes: tuple[int, int], tmp_path: Path) -> None:
    a, b = (
        batches(3, sizes[0]),
        [{**own, "example_id": own["example_id"] + 100} for own in batches(3, sizes[1], seed=7)],
    )
    module = Own(step, net=mlp())
    both = [{"a": x, "b": y} for x, y in zip(a, b, strict=True)]
    right = by_hand(module, both, of_either, total=step, ids=of_both)
    store = own_parts.traced(module, {"a": own_parts.loader(a), "b": own_parts.loader(b)}, tmp_path)
    assert relative_error(own_parts.found(store), right) < 1e-9


def test_batches_of_several_dataloaders_turned_around_as_one_are_refused(tmp_path: Path) -> None:
    a, b = batches(3, 2), [{**own, "example_id": own["example_id"] + 100} for own in batches(3, 4, seed=7)]
    with pytest.raises(ValueError, match=r"can't be told apart"):
        own_parts.traced(
            Own(as_one("b", "a"), net=mlp()), {"a": own_parts.loader(a), "b": own_parts.loader(b)}, tmp_path
        )


class ByHand(Own):
    """One forward pass, and two losses that are differentiated one after the other."""

    def __init__(self) -> None:
        super().__init__(mean_loss, net=mlp())
        self.automatic_optimization = False

    def both(self, batch: Any) -> tuple[Tensor, Tensor]:
        logits = self.net(batch["x"])
        return F.cross_entropy(logits, batch["y"]), 0.3 * logits.square().sum(1).mean()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        first, second = self.both(batch)
        self.manual_backward(first, retain_graph=True)
        self.manual_backward(second)
        optimizer.step()


def test_several_backward_passes_through_one_forward_pass(tmp_path: Path) -> None:
    def of_example(module: Any, batch: Any, i: int) -> Tensor:
        return sum(module.both({name: own[i : i + 1] for name, own in batch.items()})) / len(batch["y"])

    module = ByHand()
    right = by_hand(module, batches(), of_example, total=lambda m, b: sum(m.both(b)))
    store = own_parts.traced(module, batches(), tmp_path)
    assert relative_error(own_parts.found(store), right) < 1e-9


# Batches of any class


@dataclass
class Fields:
    x: Tensor
    y: Tensor
    example_id: Tensor

    def __getitem__(self, name: str) -> Tensor:
        """What the losses of this file take."""
        if name not in vars(self):
            raise KeyError(name)
        return vars(self)[name]


@dataclass(slots=True)
class Slots:
    x: Tensor
    y: Tensor
    example_id: Tensor


class Named(NamedTuple):
    x: Tensor
    y: Tensor
    example_id: Tensor


class Wrapped(Mapping[str, Any]):
    """Shares what is in it with its shallow copies."""

    def __init__(self, content: Mapping[str, Any] | None = None, **more: Any) -> None:
        self.content = {**(content or {}), **more}

    def __getitem__(self, name: str) -> Any:
        return self.content[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)


class Writable(Wrapped):
    def __setitem__(self, name: str, value: Any) -> None:
        self.content[name] = value


class Stubborn(Writable):
    """Can't be copied."""

    def __copy__(self) -> Stubborn:
        return self


def of_attributes(module: Any, batch: Any) -> Tensor:
    return F.cross_entropy(module.net(batch.x), batch.y)


def of_places(module: Any, batch: Any) -> Tensor:
    return F.cross_entropy(module.net(batch[0]), batch[1])


KINDS: dict[str, tuple[Callable[..., Any], Step, Any]] = {
    "dataclass": (Fields, of_attributes, "example_id"),
    "dataclass with slots": (Slots, of_attributes, "example_id"),
    "named tuple": (Named, of_attributes, "example_id"),
    "mapping": (Wrapped, mean_loss, "example_id"),
    "mapping, by attribute": (Wrapped, lambda m, b: of_places(m, list(b.content.values())), "example_id"),
    "writable mapping": (Writable, mean_loss, "example_id"),
    "mapping that can't be copied": (Stubborn, mean_loss, "example_id"),
    "list": (lambda **own: list(own.values()), of_places, 2),
    "tuple": (lambda **own: tuple(own.values()), of_places, 2),
}


@pytest.mark.parametrize(("kind", "step", "key"), KINDS.values(), ids=KINDS.keys())
def test_batches_of_any_class(kind: Callable[..., Any], step: Step, key: Any, tmp_path: Path) -> None:
    made = [kind(**batch) for batch in batches()]
    module = Own(step, net=mlp())
    right = by_hand(module, batches(), share, total=mean_loss)
    store = own_parts.traced(module, made, tmp_path, id_key=key)
    assert relative_error(own_parts.found(store), right) < 1e-9
    for batch, before in zip(made, batches(), strict=True):  # the user's own are left alone
        for place, name in enumerate(before):
            own = batch[place] if isinstance(batch, list | tuple) else getattr(batch, "content", batch)
            own = own if isinstance(own, Tensor) else own[name] if isinstance(own, dict) else getattr(own, name)
            assert torch.equal(own, before[name])


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
            "nodes": normal(sum(own), WIDTH, seed=i),
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
