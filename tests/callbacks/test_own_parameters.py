"""Parameters that a training step uses itself, so that no module can be listened to: read off autograd's graph."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ftrace.callbacks import GradientIndexWriter
from ftrace.gradients import GradientCapture
from helpers import own_parts
from helpers.own_parts import Own, batches, by_hand, found, loader, mlp, traced, trainer

CLASSES, WIDTH = own_parts.CLASSES, own_parts.WIDTH


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.4)


def cross_entropy(logits: Tensor, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(logits, batch["y"], reduction="none")


def head_and_temperature(module: Any, batch: Any) -> Tensor:
    return cross_entropy(module.net(batch["x"]) @ module.head * module.temperature.exp(), batch)


def in_blocks(module: Any, batch: Any) -> Tensor:
    first, second = (torch.cat([batch["x"], -batch["x"]]) @ module.wide).chunk(2)
    return cross_entropy(first * second.tanh(), batch)


def time_major(module: Any, batch: Any) -> Tensor:
    places = torch.stack([batch["x"], batch["x"].flip(1), batch["x"] ** 2]) + module.places[:, None]
    return cross_entropy(module.net(places).mean(0), batch)


def normalized(module: Any, batch: Any) -> Tensor:
    return cross_entropy(batch["x"] @ nn.functional.normalize(module.wide, dim=0), batch)


def tied(module: Any, batch: Any) -> Tensor:
    hidden = module.net[0](batch["x"]).tanh()
    return cross_entropy(module.net[2](hidden) + (hidden @ module.net[0].weight)[:, :CLASSES], batch)


def own_row(module: Any, batch: Any) -> Tensor:
    """As many rows as a batch of training has examples."""
    return cross_entropy(module.net(batch["x"] + module.rows[: len(batch["y"])]), batch)


def recomputed(module: Any, batch: Any) -> Tensor:
    return cross_entropy(checkpoint(lambda x: module.net(x) @ module.head, batch["x"], use_reentrant=False), batch)  # type: ignore[arg-type]


STEPS = [head_and_temperature, in_blocks, time_major, normalized, tied, own_row, recomputed]


def make(losses: Any, **settings: Any) -> Own:
    return Own(
        lambda module, batch: losses(module, batch).mean(), net=mlp(), head=parameter(CLASSES, CLASSES),
        temperature=parameter(), wide=parameter(WIDTH, CLASSES), places=parameter(3, WIDTH), rows=parameter(4, WIDTH),
        shift=Shift(), odd=OddOutput(),
        **settings,
    )  # fmt: skip


class Shift(nn.Module):
    """A layer without a rule, whose input the step changes."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.other = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift + self.other


class OddOutput(nn.Module):
    """A layer without a rule, whose output nobody knows how to read."""

    class Box:
        __slots__ = ("value",)

        def __init__(self, value: Tensor) -> None:
            self.value = value

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Any:
        return self.Box(x * self.scale + self.shift)


def changed_in_place(module: Any, batch: Any) -> Tensor:
    x = batch["x"].clone()
    shifted = module.shift(x)
    return cross_entropy(module.net(shifted + x.add_(1)), batch)


def odd_output(module: Any, batch: Any) -> Tensor:
    return cross_entropy(module.net(module.odd(batch["x"]).value), batch)


STEPS += [changed_in_place, odd_output]


@pytest.mark.parametrize("losses", STEPS, ids=lambda step: step.__name__)
@pytest.mark.parametrize("settings", [{}, {"projection_side": 64}], ids=["whole", "projected"])
def test_scores_equal_autograd(losses: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    made = batches()
    expected = by_hand(
        make(losses),
        made,
        lambda module, batch, i: losses(module, batch)[i] / 4,
        query_losses=losses,
        total=lambda module, batch: losses(module, batch).mean(),
    )
    store = traced(make(losses), made, tmp_path, query_losses=losses, **settings)
    assert torch.allclose(found(store), expected, rtol=1e-9, atol=1e-12 if not settings else 1e-6)


@pytest.mark.parametrize("losses", STEPS, ids=lambda step: step.__name__)
def test_training_is_the_same_bit_by_bit(losses: Any, tmp_path: Path) -> None:
    plain, online, indexed = (make(losses) for _ in range(3))
    torch.manual_seed(0)
    trainer(tmp_path).fit(plain, loader(batches()))
    traced(online, batches(), tmp_path, query_losses=losses)
    writer = GradientIndexWriter(tmp_path / "index", side=2, parameters=("*",))
    torch.manual_seed(0)
    trainer(tmp_path, [writer]).fit(indexed, loader(batches()))
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, online.state_dict()[name])
        assert torch.equal(weight, indexed.state_dict()[name])
    assert not any(parameter._backward_hooks for parameter in online.parameters())


def test_over_accumulated_batches(tmp_path: Path) -> None:
    made = batches(4)
    whole = [{name: torch.cat([one[name], other[name]]) for name in one} for one, other in zip(made[::2], made[1::2], strict=True)]  # fmt: skip  # noqa: E501
    expected = by_hand(
        make(head_and_temperature),
        whole,
        lambda module, batch, i: head_and_temperature(module, batch)[i] / 8,
        query_losses=head_and_temperature,
    )
    settings = {"accumulate_grad_batches": 2}
    store = traced(make(head_and_temperature), made, tmp_path, query_losses=head_and_temperature, settings=settings)
    assert torch.allclose(found(store), expected, rtol=1e-9, atol=1e-12)


class ByHand(Own):
    """Two backward passes over one graph, and one over another."""

    def __init__(self) -> None:
        super().__init__(self.nothing, net=mlp(), head=parameter(CLASSES, CLASSES))
        self.automatic_optimization = False

    @staticmethod
    def nothing(module: Any, batch: Any) -> Tensor:
        raise AssertionError

    def terms(self, batch: Any) -> list[Tensor]:
        logits = self.net(batch["x"]) @ self.head
        again = (batch["x"][:, :CLASSES] @ self.head).square().mean(1)
        return [cross_entropy(logits, batch), logits.square().mean(1), again]

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        first, second, third = self.terms(batch)
        self.manual_backward(first.mean(), retain_graph=True)
        self.manual_backward(second.mean())
        self.manual_backward(third.mean())
        optimizer.step()


def test_over_several_backward_passes(tmp_path: Path) -> None:
    made = batches()

    def total(module: Any, batch: Any) -> Tensor:
        terms: Tensor = sum(module.terms(batch))
        return terms

    expected = by_hand(ByHand(), made, lambda module, batch, i: total(module, batch)[i] / 4, query_losses=total)
    store = traced(ByHand(), made, tmp_path, query_losses=total)
    assert torch.allclose(found(store), expected, rtol=1e-9, atol=1e-12)


def test_a_penalty_is_refused_by_name(tmp_path: Path) -> None:
    module = make(normalized)
    module.step = lambda module, batch: normalized(module, batch).mean() + module.wide.square().sum()
    with pytest.raises(ValueError, match=r"'wide' .*penalty.*weight_decay.*parameters=\(\"\*\", \"!wide\"\)"):
        traced(module, batches(), tmp_path, query_losses=normalized)


def test_a_shared_term_without_examples_is_refused_by_name(tmp_path: Path) -> None:
    module = make(head_and_temperature)
    module.step = lambda module, batch: head_and_temperature(module, batch).mean() + module.temperature.square()
    with pytest.raises(ValueError, match=r"'temperature' .*penalty"):
        traced(module, batches(), tmp_path, query_losses=head_and_temperature)


def test_in_an_engine_of_ones_own_backward_passes_are_announced() -> None:
    module, batch = make(head_and_temperature), batches(1)[0]
    with GradientCapture(module, reads_graph=True) as capture, capture.recording(4) as recording:
        losses = head_and_temperature(module, batch)
        copy_of = copy.deepcopy(losses.detach())
        losses.sum().backward()
        with pytest.raises(ValueError, match=r"prepare\(\[loss\.grad_fn\]\)"):
            recording.gradients()
    assert torch.equal(losses, copy_of)
    assert "no forward to hook" in GradientCapture(module).coverage.summary()
