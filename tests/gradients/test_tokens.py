"""Products token by token: each equals what one token's part of the gradient gives, and they sum to the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ftrace.gradients import GradientCapture, Projection, QueryGradients, Recording, inner_products
from ftrace.gradients import inner_products_by_token as by_token
from ftrace.gradients.costs import Way
from helpers import oracle, tiny


def _record(model: nn.Module, batch: dict[str, Tensor], projection: Projection | None = None) -> Recording:
    with (
        GradientCapture(model, projection=projection) as capture,
        capture.recording(len(batch["labels"])) as recording,
    ):
        recording.backward(tiny.losses(model, batch))
    return recording


@pytest.mark.parametrize("memory_budget", [1, 5_000, 2**30])
@pytest.mark.parametrize("way", [None, "gram", "contraction"])
@pytest.mark.parametrize("kind", tiny.MODELS)
def test_tokens_sum_to_the_examples_products(kind: str, way: Way | None, memory_budget: int) -> None:
    model = tiny.MODELS[kind]().eval()
    examples, queries = tiny.batch(kind, 4), tiny.batch(kind, 3, seed=1, length=6)
    recording = _record(model, examples)
    prepared = QueryGradients(_record(model, queries).gradients(), way, memory_budget)
    found = by_token(recording, prepared)
    total = sum(of_run.products.sum(1) for of_run in found)
    rows = oracle.matrix(oracle.gradients(model, lambda: tiny.losses(model, examples)))
    columns = oracle.matrix(oracle.gradients(model, lambda: tiny.losses(model, queries)))
    assert oracle.relative_error(total, rows @ columns.T) < 1e-9
    gradients = recording.gradients()
    assert oracle.relative_error(inner_products(gradients, prepared, list(gradients.parts)), rows @ columns.T) < 1e-9
    assert {name for of_run in found for name in of_run.parameters} == {name for name, _ in model.named_parameters()}


def test_each_token_by_itself() -> None:
    """A layer's positions are its tokens: cutting off all other tokens' output gradients leaves one's products."""
    torch.manual_seed(0)
    layer = nn.Linear(5, 3).double()
    inputs, query_inputs = (torch.randn(n, 4, 5, dtype=torch.float64) for n in (3, 2))
    with GradientCapture(layer) as capture:
        with capture.recording(2) as of_queries:
            of_queries.backward(layer(query_inputs).sin().flatten(1).sum(1))
        with capture.recording(3) as recording:
            recording.backward(layer(inputs).sin().flatten(1).sum(1))
    (found,) = by_token(recording, QueryGradients(of_queries.gradients()))
    assert found.products.shape == (3, 4, 2)
    columns = oracle.matrix(oracle.gradients(layer, lambda: layer(query_inputs).sin().flatten(1).sum(1)))
    for token in range(4):
        rows = oracle.matrix(oracle.gradients(layer, lambda t=token: layer(inputs).sin()[:, t].sum(1)))
        torch.testing.assert_close(found.products[:, token], rows @ columns.T, rtol=1e-9, atol=1e-12)


def test_some_parameters_only() -> None:
    model, batch = tiny.gpt2().eval(), tiny.batch("gpt2", 3)
    recording = _record(model, batch)
    prepared = QueryGradients(_record(model, batch).gradients())
    found = by_token(recording, prepared, ["transformer.h.0.attn.c_attn.weight"])
    assert [(run.layer, run.parameters) for run in found] == [
        ("transformer.h.0.attn.c_attn", ("transformer.h.0.attn.c_attn.weight",))
    ]


def test_what_has_no_tokens_is_refused_by_name() -> None:
    model, batch = tiny.gpt2().eval(), tiny.batch("gpt2", 3)
    with pytest.raises(ValueError, match="expected a recording without projection"):
        by_token(_record(model, batch, Projection(4)), QueryGradients(_record(model, batch).gradients()))
    layer = nn.Sequential(nn.PReLU())
    with GradientCapture(layer) as capture, capture.recording(2) as recording:
        recording.backward(layer(torch.randn(2, 3)).sum(1))
    with pytest.raises(ValueError, match=r"layer '0' \(PReLU\) doesn't keep positions apart"):
        by_token(recording, QueryGradients(recording.gradients()))
