"""Rows that a step puts in one order in one batch and in another in the next are an error; and lists of rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ftrace.callbacks import GradientIndexWriter, SelfCheckError
from helpers import own_parts
from helpers.oracle import relative_error
from helpers.own_parts import WIDTH, Own, by_hand, found, mlp, traced

Step = Callable[[Any, Any], Tensor]


def batches(count: int, lengths: Callable[[int], list[int]], size: int = 4) -> list[dict[str, Any]]:
    made = own_parts.batches(count, size)
    return [{**batch, "length": torch.tensor(lengths(index))} for index, batch in enumerate(made)]


def by_length(module: Any, batch: Any) -> Tensor:
    order = batch["length"].argsort(descending=True, stable=True)
    return F.cross_entropy(module.net(batch["x"][order]), batch["y"][order])


def views(module: Any, batch: Any, in_blocks: bool) -> Tensor:
    pair = torch.stack([batch["x"], -batch["x"]], 1)
    if in_blocks:
        logits = module.net(torch.cat([pair[:, 0], pair[:, 1]]))
        return F.cross_entropy(logits, batch["y"].repeat(2))
    return F.cross_entropy(module.net(pair.flatten(0, 1)), batch["y"].repeat_interleave(2))


class Alternates(Own):
    """Views of an example side by side and in blocks, by turns."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return views(self, batch, batch_idx % 2 == 1)


@pytest.mark.parametrize("self_check", [True, False])
@pytest.mark.parametrize("first", [[4, 3, 2, 1], [2, 2, 2, 2]], ids=["sorted first", "all alike first"])
def test_an_order_that_the_first_batches_hide_is_an_error(first: list[int], self_check: bool, tmp_path: Path) -> None:
    data = batches(8, lambda index: first if index < 2 else [1, 3, 2, 4])
    with pytest.raises((SelfCheckError, ValueError), match=r"are not where they were|can't be told apart"):
        traced(Own(by_length, net=mlp()), data, tmp_path, self_check=self_check)


@pytest.mark.parametrize("self_check", [True, False])
def test_orders_by_turns_are_an_error(self_check: bool, tmp_path: Path) -> None:
    with pytest.raises(
        SelfCheckError, match=r"are not where they were in an earlier batch.*Order examples in the loader"
    ):
        traced(Alternates(by_length, net=mlp()), own_parts.batches(6), tmp_path, self_check=self_check)


def test_an_index_says_so_too(tmp_path: Path) -> None:
    writer = GradientIndexWriter(tmp_path / "index", projection_side=2, parameters=("*",), self_check=False)
    with pytest.raises(SelfCheckError, match=r"are not where they were"):
        own_parts.trainer(tmp_path, [writer]).fit(
            Alternates(by_length, net=mlp()), own_parts.loader(own_parts.batches(6))
        )


def test_what_mixes_examples_is_refused_whatever_the_queries_do(tmp_path: Path) -> None:
    """Exchanging labels alone would show nothing of it."""

    def centred(module: Any, batch: Any) -> Tensor:
        hidden = module.first(batch["x"])
        return module.net(hidden - hidden.mean(0))

    module = Own(lambda m, b: F.cross_entropy(centred(m, b), b["y"]), first=nn.Linear(WIDTH, WIDTH), net=mlp())
    with pytest.raises(ValueError, match=r"can't be told apart"):
        traced(
            module,
            own_parts.batches(),
            tmp_path,
            query_losses=lambda m, b: F.cross_entropy(m.net(m.first(b["x"])), b["y"], reduction="none"),
            self_check=False,
        )


@pytest.mark.parametrize("lengths", [[2, 4, 3, 4], [4, 4, 4, 4], [1, 3, 2, 2]], ids=str)
def test_lists_of_one_tensor_an_example(lengths: list[int], tmp_path: Path) -> None:
    """As long as the batch has examples, perhaps."""
    generator = torch.Generator().manual_seed(0)

    def rows(key: str, seed: int) -> list[dict[str, Any]]:
        texts = [torch.randn(length, WIDTH, generator=generator).double() for length in lengths]
        return [{**own_parts.batches(1, 4, key, seed)[0], "texts": texts}]

    def losses(module: Any, batch: Any) -> Tensor:
        padded = pad_sequence(batch["texts"], batch_first=True)
        return F.cross_entropy(module.net(padded).sum(1), batch["y"], reduction="none")

    data, asked = rows("example_id", 1), rows("query_id", 2)
    module = Own(lambda module, batch: losses(module, batch).mean(), net=mlp())
    right = by_hand(module, data, lambda module, batch, i: losses(module, batch)[i] / 4, asked, losses)
    assert relative_error(found(traced(module, data, tmp_path, asked, losses)), right) < 1e-9


class Adversaries(Own):
    """Two optimizers by hand, and noise that the step draws itself."""

    def __init__(self) -> None:
        super().__init__(by_length, net=mlp(), made=nn.Linear(2, WIDTH))
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        makes, judges = self.optimizers()  # type: ignore[misc]
        noise = torch.randn(len(batch["y"]), 2).double()
        for optimizer, sign in ((judges, 1), (makes, -1)):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            fake = F.softplus(sign * self.net(self.made(noise))[:, 0]).mean()
            self.manual_backward(fake + own_parts.mean_loss(self, batch) if sign > 0 else fake)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.made, self.net)]


def test_noise_that_no_example_has_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"changes with no example's inputs.*parameters="):
        traced(Adversaries(), own_parts.batches(), tmp_path)
