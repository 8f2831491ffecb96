"""Whitened scores by their dense formula in float64, one example at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ftrace.gradients import Projection
from helpers import replay

SIDE = 3


def dense_projection(projection: Projection, name: str, shape: torch.Size) -> Tensor:
    """The projection of a parameter as one matrix ``[D, P]``."""
    basis = torch.eye(shape.numel(), dtype=torch.float64).view(-1, *shape)
    return projection.project(name, basis).flatten(1).T


def second_moments(optimizer: Any, module: Any) -> dict[str, Tensor]:
    """One over the root of V by the optimizer's own formula, in the parameter's shape; 0 where V is."""
    found = {}
    for name, p in module.named_parameters():
        state = optimizer.state.get(p, {})
        if "exp_avg_sq" in state:
            v_hat = state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))
            found[name] = torch.where(v_hat > 0, 1 / (v_hat.sqrt() + 1e-8), 0.0)
        elif "row_var" in state or "variance" in state:
            v = (
                state["variance"]
                if "variance" in state
                else state["row_var"] @ state["col_var"] / state["row_var"].mean()
            )
            found[name] = torch.where(v > 0, v.clamp(min=torch.finfo(p.dtype).eps ** 2).rsqrt(), 0.0)
    return found


def closest_outer_product(scale: Tensor) -> Tensor:
    if scale.ndim < 2:
        return scale
    v = torch.where(scale > 0, scale.square().reciprocal(), 0.0)
    outer = v.mean(1, keepdim=True) @ v.mean(0, keepdim=True) / v.mean()
    return torch.where(outer > 0, outer.rsqrt(), 0.0)


def dense_formula(
    module: Any, windows: Any, asked: Any, *, refresh: int, window: int, damping: float, divided: str, names: list[str],
    by_learning: bool, share: float,
) -> dict[int, Tensor]:  # fmt: skip
    """Trains by hand; R, V and queries are those of the last refresh.

    Each batch's mean loss enters the gradient with ``share``: 1 / (batches accumulated * processes).
    """
    (optimizer,), (schedule,) = module.configure_optimizers()
    projection = Projection(SIDE, seed=4)
    matrices = {n: dense_projection(projection, n, p.shape) for n, p in module.named_parameters() if n in names}
    seen: list[tuple[int, dict[str, Tensor]]] = []
    found: dict[int, Tensor] = {}
    scales: dict[str, Tensor] = {}

    def phi(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: matrices[n] @ (gradient[n] * scales.get(n, torch.ones(()))).flatten() for n in names}

    for t, batches in enumerate(windows):
        if t % refresh == 0:
            had_none, scales = not scales, second_moments(optimizer, module) if divided != "none" else {}
            if had_none and scales:  # of another scale
                seen.clear()
            if divided == "rank-one":
                scales = {n: closest_outer_product(scale) for n, scale in scales.items()}
            batch_of_queries = torch.utils.data.default_collate(asked)
            losses = module.example_losses(batch_of_queries)
            lengths = module.answer_lengths(batch_of_queries) if hasattr(module, "answer_lengths") else 1
            p = torch.exp(-losses.detach() * torch.as_tensor(4 / lengths).clamp(max=1))
            roots = {}
            for n in names:
                D = SIDE * SIDE
                R = torch.zeros(D, D, dtype=torch.float64)
                total = 0.0
                for s, own in seen:
                    weight = (1 - 1 / window) ** (t - 1 - s)
                    R += weight * torch.outer(own[n], own[n])
                    total += weight
                if total == 0 or R.trace() == 0:
                    roots[n] = torch.eye(D, dtype=torch.float64)
                    continue
                R = R / total
                values, vectors = torch.linalg.eigh(R + damping * R.trace() / D * torch.eye(D, dtype=torch.float64))
                roots[n] = vectors @ torch.diag(values.rsqrt()) @ vectors.T
            queries = [torch.cat([roots[n] @ q for n, q in phi(g).items()]) for g in replay.per_example(module, losses)]
        for batch in batches:
            losses = module.example_losses(torch.utils.data.default_collate(batch)) / len(batch) * share
            for row, gradient in zip(batch, replay.per_example(module, losses), strict=True):
                own = phi(gradient)
                white = torch.cat([roots[n] @ v for n, v in own.items()])
                scores = torch.stack([white @ q / white.norm() / q.norm() for q in queries])
                scores = scores * (p * (1 - p)).sqrt() if by_learning else scores
                found[row["example_id"]] = found.get(row["example_id"], 0) + scores
                seen.append((t, own))
        optimizer.zero_grad()
        for batch in batches:
            (module.example_losses(torch.utils.data.default_collate(batch)).mean() * share).backward()
        optimizer.step()
        schedule["scheduler"].step()
    return found
