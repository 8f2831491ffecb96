"""A fused head's weight, against plain autograd, one example at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ftrace.gradients import FusedHead, GradientCapture, Projection, project, record_head
from helpers import oracle

B, T, H, V = 3, 4, 5, 7
TRANSFORMS: list[dict[str, Any]] = [{}, {"temperature": 0.7}, {"softcap": 1.5, "scale": 2.0, "temperature": 1.3}]


class Fused(torch.autograd.Function):
    """Log-probabilities and entropies by one function, whose gradients no module's hooks see."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, compute: Any) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.compute = compute
        made: tuple[Tensor, Tensor] = compute(hidden, weight, bias)
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        leaves = [None if each is None else each.detach().requires_grad_() for each in ctx.saved_tensors]
        with torch.enable_grad():
            outputs = ctx.compute(*leaves)
        wanted = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(outputs, wanted, grads))
        return (*[None if leaf is None else next(found) for leaf in leaves], None)


class Model(nn.Module):
    """A model with a fused head."""

    def __init__(self, *, bias: bool, transform: dict[str, Any], places: Tensor | None = None) -> None:
        super().__init__()
        self.places = places
        torch.manual_seed(0)
        self.body, self.head, self.transform = nn.Linear(H, H), nn.Linear(H, V, bias=bias), transform
        self.double()

    def forward(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropies, ``[B, T]`` each."""
        hidden, flat = torch.tanh(self.body(x)).reshape(-1, H), targets.reshape(-1)
        if self.places is not None:
            hidden, flat = hidden[self.places], flat[self.places]

        def compute(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
            logits = F.linear(hidden, weight, bias) * self.transform.get("scale", 1.0)
            cap = self.transform.get("softcap")
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            log_p = (logits / self.transform.get("temperature", 1.0)).log_softmax(-1)
            return log_p.gather(-1, flat[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)

        made = Fused.apply(hidden, self.head.weight, self.head.bias, compute)
        head = FusedHead(self.head, hidden, flat, self.places, targets.numel(), dtype=torch.float64, **self.transform)
        record_head(head, {"log_probs": made[0], "entropy": made[1]})
        if self.places is None:
            return made[0].view(targets.shape), made[1].view(targets.shape)
        spread = [made[0].new_zeros(targets.numel()).index_copy(0, self.places, output) for output in made]
        return spread[0].view(targets.shape), spread[1].view(targets.shape)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, T, H, generator=generator, dtype=torch.float64)
    return x, torch.randint(V, (B, T), generator=generator)


def losses(model: Model, entropy: float) -> Tensor:
    log_p, entropies = model(*batch())
    return -(log_p + entropy * entropies).sum(1)


PLACES = [None, torch.tensor([0, 1, 2, 4, 5, 6, 8, 9, 10]), torch.tensor([1, 3, 4, 7, 8, 9, 10])]  # of 12 tokens


@pytest.mark.parametrize("places", PLACES, ids=["all", "all but the last", "ragged"])
@pytest.mark.parametrize("entropy", [0.0, 0.3])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_autograd(
    bias: bool, transform: dict[str, Any], entropy: float, places: Tensor | None
) -> None:
    model = Model(bias=bias, transform=transform, places=places)
    expected = oracle.gradients(model, lambda: losses(model, entropy))
    with GradientCapture(model) as capture, capture.recording(B) as recording:
        recording.backward(losses(model, entropy))
    found = recording.gradients()
    projection = Projection(2, seed=3)
    with GradientCapture(model, projection=projection) as capture, capture.recording(B) as recording:
        recording.backward(losses(model, entropy))
    at_once, afterwards = recording.gradients(), project(found, projection)
    for name, _ in model.named_parameters():
        dense = torch.stack([gradient[name] for gradient in expected])
        torch.testing.assert_close(found.dense(name), dense, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(at_once.dense(name), afterwards.dense(name), rtol=1e-9, atol=1e-12)


def test_nothing_is_told_to_captures_that_do_not_record() -> None:
    model = Model(bias=False, transform={})
    with GradientCapture(model) as capture:
        losses(model, 0.0).sum().backward()
        with capture.recording(B) as recording:
            recording.backward(losses(model, 0.0))
    torch.testing.assert_close(
        recording.gradients().total("head.weight"), model.head.weight.grad, rtol=1e-9, atol=1e-12
    )
