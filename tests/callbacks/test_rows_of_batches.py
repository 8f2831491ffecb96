"""Whose rows are whose in batches of any class, of several dataloaders, and in several backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers import own_parts
from helpers.oracle import relative_error
from helpers.own_parts import Own, batches, by_hand, losses, mean_loss, mlp, share

Step = Callable[[Any, Any], Tensor]


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
