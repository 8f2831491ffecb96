"""Preconditioners against what the optimizers really do to weights, and what they do to products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor as TransformersAdafactor

from ftrace.gradients import (
    Elementwise,
    GradientCapture,
    PerExampleGradients,
    QueryGradients,
    RankOne,
    inner_products,
    inner_products_and_square_norms,
    of_touched,
    pool,
    precondition,
    preconditioner_from_state,
    preconditioners_from_optimizer,
    rank_one,
    rank_one_from_state,
    touched_elements,
)
from ftrace.gradients.costs import Way
from ftrace.gradients.names import full_name
from helpers import oracle, tiny

ADAM = {"lr": 0.01, "betas": (0.0, 0.9), "eps": 1e-3}  # without momentum: the step is the preconditioned gradient
OPTIMIZERS: dict[str, Any] = {
    "adam": lambda p: torch.optim.Adam(p, **ADAM),
    "adam foreach": lambda p: torch.optim.Adam(p, **ADAM, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, **ADAM, fused=True),
    "adam amsgrad": lambda p: torch.optim.Adam(p, **ADAM, amsgrad=True),
    "adamw of two groups": lambda p: torch.optim.AdamW(
        [{"params": p[:1], "eps": 0.1}, {"params": p[1:]}], **ADAM, weight_decay=0.0
    ),
    "adafactor of torch": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "adafactor of transformers": lambda p: TransformersAdafactor(p, lr=0.01, relative_step=False),
}


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 3, 2)).double()


def _trained(make: Any, steps: int = 4) -> tuple[nn.Module, Any, dict[str, Tensor], dict[str, Tensor]]:
    """The module, its optimizer, the last step's gradient and what it did to the weights."""
    module = _net()
    optimizer = make(list(module.parameters()))
    for step in range(steps):
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        optimizer.zero_grad()
        inputs = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        module(inputs).square().sum().backward()
        optimizer.step()
    grads = {name: p.grad for name, p in module.named_parameters()}
    return module, optimizer, grads, {name: p.detach() - before[name] for name, p in module.named_parameters()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_the_preconditioned_gradient(name: str) -> None:
    module, optimizer, grads, changes = _trained(OPTIMIZERS[name])
    found = preconditioners_from_optimizer(optimizer, module.named_parameters())
    assert found.keys() == grads.keys()
    for parameter, change in changes.items():
        step = found[parameter].dense().view(change.shape) * grads[parameter]
        ratio = change / step  # the learning rate, and for Adafactor what clips and scales a whole parameter's update
        torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-6, atol=0)
        if "adam" in name:
            torch.testing.assert_close(ratio, torch.full_like(ratio, -0.01), rtol=1e-9, atol=0)
    if "adafactor" in name:
        assert isinstance(found["0.weight"], RankOne)
        assert isinstance(found["3.weight"], Elementwise)  # three axes


def test_states_that_are_missing_or_unknown_are_named() -> None:
    module = _net()
    optimizer = torch.optim.Adam(module.parameters())
    with pytest.raises(ValueError, match=r"has no 'exp_avg_sq' of '0.weight': expected it to have taken a step"):
        preconditioners_from_optimizer(optimizer, module.named_parameters())
    with pytest.raises(ValueError, match=r"no preconditioner is known for torch.optim.sgd.SGD: expected one of torch"):
        preconditioner_from_state("w", "torch.optim.sgd.SGD", {}, {}, (2, 2))


def test_rank_one_is_exact_for_an_outer_product_and_says_how_far_off_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.rand(n, generator=generator, dtype=torch.float64) + 0.1 for n in (6, 5))
    found, error = rank_one(Elementwise(torch.outer(rows, columns)))
    torch.testing.assert_close(found.dense(), torch.outer(rows, columns))
    assert error < 1e-12
    scale = torch.rand(6, 5, generator=generator, dtype=torch.float64) + 0.1
    found, error = rank_one(Elementwise(scale))
    assert 0.05 < error < 1
    assert error == pytest.approx(float((found.dense() - scale).norm() / scale.norm()))
    with pytest.raises(ValueError, match="at least two axes"):
        rank_one(Elementwise(torch.ones(3)))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_rank_one_of_a_state_is_that_of_its_touched_elements(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read some rows at a time, it is what the whole matrix gives."""
    monkeypatch.setattr("ftrace.gradients.preconditioners._CHUNK_NUMBERS", 7)
    _, optimizer, _, _ = _trained(OPTIMIZERS[name])
    kind = full_name(optimizer)
    for group in optimizer.param_groups:
        for p in (each for each in group["params"] if each.ndim > 1):
            state = {
                key: value.clone().to(dtype) if isinstance(value, Tensor) and value.ndim else value
                for key, value in optimizer.state[p].items()
            }
            for value in state.values():
                if isinstance(value, Tensor) and value.ndim == p.ndim and "adafactor" not in name:
                    value[0], value.view(len(value), -1)[:, 1] = 0, 0  # never touched
            found = rank_one_from_state("w", kind, group, state, p.shape, dtype)
            whole = preconditioner_from_state("w", kind, group, state, p.shape, dtype)
            whole = of_touched(whole, touched_elements(kind, group, state))
            expected = rank_one(whole)[0] if isinstance(whole, Elementwise) else whole
            assert type(found) is type(expected)
            tolerance = 1e-12 if dtype == torch.float64 else 1e-3
            torch.testing.assert_close(found.dense(), expected.dense(), rtol=tolerance, atol=0)


def _preconditioners(model: nn.Module, kind: str) -> dict[str, Elementwise | RankOne]:
    generator = torch.Generator().manual_seed(5)
    found: dict[str, Elementwise | RankOne] = {}
    for name, parameter in model.named_parameters():
        scale = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5
        found[name] = rank_one(Elementwise(scale))[0] if kind == "rank one" and scale.ndim > 1 else Elementwise(scale)
    return found


def _gradients(model: nn.Module, batch: dict[str, Tensor]) -> PerExampleGradients:
    with GradientCapture(model) as capture, capture.recording(len(batch["labels"])) as recording:
        recording.backward(tiny.losses(model, batch))
    return recording.gradients()


@pytest.mark.parametrize("sides", ["queries", "examples", "both"])
@pytest.mark.parametrize("kind", ["elementwise", "rank one"])
@pytest.mark.parametrize("way", [None, "gram", "contraction", "materialised"])
@pytest.mark.parametrize("memory_budget", [1, 2**30])
def test_preconditioned_products_and_norms(kind: str, sides: str, way: Way | None, memory_budget: int) -> None:
    model = tiny.gpt2().eval()  # tied: each product has cross terms
    examples, queries = tiny.batch("gpt2", 5), tiny.batch("gpt2", 4, seed=1, length=6)
    scales = _preconditioners(model, kind)
    flat = torch.cat([scales[name].dense().flatten() for name, _ in model.named_parameters()])
    rows = oracle.matrix(oracle.gradients(model, lambda: tiny.losses(model, examples)))
    columns = oracle.matrix(oracle.gradients(model, lambda: tiny.losses(model, queries)))
    rows, columns = (rows if sides == "queries" else rows * flat), (columns if sides == "examples" else columns * flat)
    of_queries = _gradients(model, queries)
    of_queries = of_queries if sides == "examples" else precondition(of_queries, scales)
    prepared = QueryGradients(of_queries, way, memory_budget)
    found = _gradients(model, examples)
    found = found if sides == "queries" else precondition(found, scales)
    names = list(found.parts)
    if kind == "elementwise" and way == "gram":
        with pytest.raises(ValueError, match=rf"way='{way}' is not possible for"):
            inner_products(found, prepared, names)
        return
    assert oracle.relative_error(inner_products(found, prepared, names), rows @ columns.T) < 1e-9
    inner, square_norms = inner_products_and_square_norms(found, prepared, names)
    assert oracle.relative_error(inner, rows @ columns.T) < 1e-9
    assert oracle.relative_error(square_norms, rows.square().sum(1)) < 1e-9
    assert oracle.relative_error(prepared.norms(names), columns.norm(dim=1)) < 1e-9


def test_a_parameter_without_preconditioner_is_named() -> None:
    model = tiny.gpt2()
    with pytest.raises(ValueError, match=r"found none for \['transformer.h.0.attn.c_attn.bias'"):
        precondition(_gradients(model, tiny.batch("gpt2", 2)), {})


def test_what_would_mix_up_preconditioners_is_an_error() -> None:
    model, batch = tiny.gpt2(), tiny.batch("gpt2", 2)
    one, other = (precondition(_gradients(model, batch), _preconditioners(model, "elementwise")) for _ in range(2))
    with pytest.raises(ValueError, match="stack: expected batches with the same preconditioner"):
        PerExampleGradients.stack([one, other])
    with pytest.raises(ValueError, match="pool: expected projected gradients"):
        pool(one, {"a": ["transformer.wpe.weight"]})


def test_an_optimizers_state_is_left_as_it_is() -> None:
    module = _net()
    optimizer = torch.optim.Adam(module.parameters())
    with pytest.raises(ValueError, match="has no"):
        preconditioners_from_optimizer(optimizer, module.named_parameters())
    assert len(optimizer.state) == 0
