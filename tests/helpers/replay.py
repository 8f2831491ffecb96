"""The definitions of the scores, replayed in float64: training by hand, plain autograd, one example at a time.

Nothing here is recursive or cheap: each past step's share of each later step is computed by itself, from the formulas
of the optimizers' papers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

Row = dict[str, Any]
MakeOptimizer = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8, dampening=0.3, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01, weight_decay=0.1),
}


class Net(pl.LightningModule):
    """A tiny regression with a table, whose optimizer is given."""

    def __init__(self, make_optimizer: MakeOptimizer) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(5, 4)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2))
        for parameter in self.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        self.double()
        self.make_optimizer = make_optimizer

    def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = batch["x"].to(self.net[0].weight.dtype) + self.table(batch["word"])
        return self.net(hidden).square().mean(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.example_losses(batch).mean()

    def configure_optimizers(self) -> Any:
        parameters = list(self.parameters())
        optimizer = self.make_optimizer([{"params": parameters[:3]}, {"params": parameters[3:], "lr": 0.02}])
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Dropout(Net):
    """With dropout between its layers."""

    def __init__(self, make_optimizer: MakeOptimizer) -> None:
        super().__init__(make_optimizer)
        self.net.insert(3, nn.Dropout(0.3))


def rows(count: int, key: str, seed: int = 0) -> list[Row]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "x": torch.randn(4, generator=generator).double(),
            "word": torch.randint(5, (), generator=generator),
            key: 7 * i + 1,
        }
        for i in range(count)
    ]


def trainer(tmp_path: Path, **settings: Any) -> pl.Trainer:
    defaults: dict[str, Any] = dict(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, precision="64-true",
    )  # fmt: skip
    return pl.Trainer(**{**defaults, **settings})


@dataclass
class Step:
    """One optimizer step of the replay; everything by parameter name."""

    rate: dict[str, float]
    clip: float
    contributions: list[tuple[int, dict[str, Tensor]]]
    scale: dict[str, Tensor] = field(default_factory=dict)
    own_step: dict[str, int] = field(default_factory=dict)
    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)
    query_gradients: list[dict[str, Tensor]] = field(default_factory=list)
    losses: Tensor = field(default_factory=lambda: torch.empty(0))


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def per_example(module: nn.Module, losses: Tensor) -> list[dict[str, Tensor]]:
    named = trained(module)
    found = []
    for loss in losses:
        grads = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        found.append(
            {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), grads, strict=True)}
        )
    return found


def train(
    module: Any, windows: Sequence[Sequence[list[Row]]], query_rows: list[Row], *, clip: float | None,
    accumulate: int = 1, processes: int = 1,
) -> list[Step]:  # fmt: skip
    """Train by hand; ``windows`` are the batches of each step, of all processes."""
    (optimizer,), (schedule,) = module.configure_optimizers()
    named = trained(module)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    steps = []
    for window in windows:
        contributions: list[tuple[int, dict[str, Tensor]]] = []
        for batch in window:
            losses = module.example_losses(default_collate(batch)) / len(batch) / accumulate / processes
            contributions += zip((row["example_id"] for row in batch), per_example(module, losses), strict=True)
        queries = module.example_losses(default_collate(query_rows))
        query_gradients = per_example(module, queries)
        total = {n: torch.stack([own[n] for _, own in contributions]).sum(0) for n in named}
        norm = float(torch.cat([t.flatten() for t in total.values()]).norm())
        kappa = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        for n, p in named.items():
            p.grad = kappa * total[n]
        step = Step({n: group_of[id(p)]["lr"] for n, p in named.items()}, kappa, contributions)
        step.before = {n: p.detach().clone() for n, p in named.items()}
        sizes = {n: float(p.detach().square().mean().sqrt()) for n, p in named.items()}
        optimizer.step()
        for n, p in named.items():
            step.scale[n], step.own_step[n] = scale_after(optimizer, p, step.rate[n], sizes[n])
        step.after = {n: p.detach().clone() for n, p in named.items()}
        step.query_gradients, step.losses = query_gradients, queries.detach()
        schedule["scheduler"].step()
        steps.append(step)
    return steps


def scale_after(optimizer: Any, p: nn.Parameter, rate: float, size: float) -> tuple[Tensor, int]:
    """What the (momentum-averaged) gradient was multiplied with, in the parameter's shape."""
    group = next(g for g in optimizer.param_groups if any(p is q for q in g["params"]))
    state = optimizer.state[p]
    if isinstance(optimizer, torch.optim.SGD):
        return torch.full_like(p, rate), 0
    t = int(state["step"])
    if isinstance(optimizer, torch.optim.Adam):  # AdamW, too
        v_hat = state["exp_avg_sq"] / (1 - group["betas"][1] ** t)
        return rate / (v_hat.sqrt() + group["eps"]), t
    assert type(optimizer).__name__ == "Adafactor"
    eps1 = group["eps"][0] if group["eps"][0] is not None else torch.finfo(p.dtype).eps
    if p.ndim > 1:
        v = state["row_var"] @ state["col_var"] / state["row_var"].mean(-2, keepdim=True).clamp(min=eps1)
    else:
        v = state["variance"]
    raw = v.clamp(min=eps1**2).rsqrt()
    update = raw * p.grad
    alpha = max(group["eps"][1], size) * min(rate, 1 / math.sqrt(t))
    return raw * alpha / max(1.0, float(update.square().mean().sqrt()) / group["d"]), t


def share_of(optimizer: Any, s: int, t: int, steps: list[Step], name: str) -> float:
    """w_{s,t} without rate, scale and kappa: how much of step s's gradient is in step t."""
    group = optimizer.param_groups[0]
    if isinstance(optimizer, torch.optim.SGD):
        mu, damp = group["momentum"], group["dampening"]
        if not mu:
            return float(s == t)
        kept = (1.0 if s == 0 else 1 - damp) * mu ** (t - s)
        return float(s == t) + mu * kept if group["nesterov"] else kept
    if isinstance(optimizer, torch.optim.Adam):
        beta = group["betas"][0]
        return (1 - beta) * beta ** (t - s) / (1 - beta ** steps[t].own_step[name])
    return float(s == t)


def eventual_share(optimizer: Any, s: int, steps: list[Step], name: str) -> float:
    """The same, summed over all later steps at constant rate and scale: a plain long sum."""
    group = optimizer.param_groups[0]
    total = 0.0
    for later in range(4000):
        if isinstance(optimizer, torch.optim.Adam):
            beta = group["betas"][0]
            total += (1 - beta) * beta**later / (1 - beta ** (steps[s].own_step[name] + later))
        else:
            total += share_of(optimizer, s, s + later, steps, name)
    return total


def query_gradients_at(
    steps: list[Step], final: list[dict[str, Tensor]], t: int, q: int, *, refresh: int | Sequence[int], trapezoid: bool
) -> dict[str, Tensor]:
    """``refresh`` is the number of steps between refreshes, or the steps before which there was one."""
    refreshes = range(0, len(steps), refresh) if isinstance(refresh, int) else refresh
    start = max(before for before in refreshes if before <= t)
    left = steps[start].query_gradients[q]
    if not trapezoid:
        return left
    end = min([before for before in refreshes if before > t], default=len(steps))
    right = steps[end].query_gradients[q] if end < len(steps) else final[q]
    lam = (t - start + 0.5) / (end - start)
    return {n: (1 - lam) * left[n] + lam * right[n] for n in left}


def scores(
    kind: str, module: Any, steps: list[Step], query_rows: list[Row], *, refresh: int | Sequence[int] = 1,
    trapezoid: bool = False, exact_momentum: bool = False,
) -> dict[int, Tensor]:  # fmt: skip
    """By example id, ``[Q]``; ``module`` is at its final weights."""
    (optimizer,), _ = copy.deepcopy(module).configure_optimizers()
    final = per_example(module, module.example_losses(default_collate(query_rows)))
    scores: dict[int, Tensor] = {}

    @cache
    def gradient(t: int, q: int) -> dict[str, Tensor]:
        return query_gradients_at(steps, final, t, q, refresh=refresh, trapezoid=trapezoid and kind != "cosine")

    @cache
    def eventual(s: int, name: str) -> float:
        return eventual_share(optimizer, s, steps, name)

    def factors(s: int, q: int) -> dict[str, Tensor]:
        """What step s's contributions are multiplied with, the same for all of its examples."""
        step = steps[s]
        if kind == "dot":
            return {n: step.rate[n] * step.clip * g for n, g in gradient(s, q).items()}
        if exact_momentum:
            shares = [
                {n: share_of(optimizer, s, t, steps, n) * g * steps[t].scale[n] for n, g in gradient(t, q).items()}
                for t in range(s, len(steps))
            ]
            return {n: step.clip * torch.stack([share[n] for share in shares]).sum(0) for n in shares[0]}
        return {n: step.clip * eventual(s, n) * g * step.scale[n] for n, g in gradient(s, q).items()}

    for s, step in enumerate(steps):
        by_query = [gradient(s, q) if kind == "cosine" else factors(s, q) for q in range(len(query_rows))]
        for example, contribution in step.contributions:
            row = torch.zeros(len(query_rows), dtype=torch.float64)
            for q, factor in enumerate(by_query):
                if kind == "cosine":
                    flat = torch.cat([g.flatten() for g in factor.values()])
                    other = torch.cat([c.flatten() for c in contribution.values()])
                    row[q] = flat @ other / flat.norm() / other.norm()
                else:
                    row[q] = sum((f * contribution[n]).sum() for n, f in factor.items())
            scores[example] = scores.get(example, 0) + row
    return scores
