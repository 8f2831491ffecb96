"""Whole models: every trained parameter of every example equals autograd, however the pass is run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ftrace.gradients import (
    GradientCapture,
    PerExampleGradients,
    Projection,
    QueryGradients,
    UnreadableError,
    inner_products,
)
from helpers import oracle, tiny


def _recorded(model: nn.Module, rows: int, losses: Any) -> PerExampleGradients:
    with GradientCapture(model) as capture, capture.recording(rows) as recording:
        recording.backward(losses())
    assert capture.coverage.gaps == []
    return recording.gradients()


def _assert_equal(found: PerExampleGradients, expected: list[dict[str, Tensor]], tolerance: float = 1e-9) -> None:
    scale = max(float(value.abs().max()) for row in expected for value in row.values())
    for name in expected[0]:
        wanted = torch.stack([row[name] for row in expected])
        given = found.dense(name) if name in found.parts else torch.zeros_like(wanted)
        torch.testing.assert_close(given, wanted, rtol=tolerance, atol=tolerance * 1e-2 * scale, msg=name)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", tiny.LANGUAGE_MODELS)
def test_language_models(kind: str, attention: str) -> None:
    model = tiny.LANGUAGE_MODELS[kind](attn_implementation=attention).eval()
    batch = tiny.batch(kind, rows=4)
    found = _recorded(model, 4, lambda: tiny.losses(model, batch))
    _assert_equal(found, oracle.gradients(model, lambda: tiny.losses(model, batch)))


def test_convolutional_classifier() -> None:
    model = tiny.Classifier().double().eval()
    images, labels = torch.randn(4, 3, 7, 7, dtype=torch.float64), torch.tensor([0, 4, 2, 2])

    def losses() -> Tensor:
        return F.cross_entropy(model(images), labels, reduction="none")

    _assert_equal(_recorded(model, 4, losses), oracle.gradients(model, losses))


@pytest.mark.parametrize("kind", [*tiny.LANGUAGE_MODELS, "classifier"])
def test_contributions_sum_to_the_gradient_of_every_parameter(kind: str) -> None:
    """Coverage is proved: in train mode, with dropout, nothing is missing from `.grad`."""
    if kind == "classifier":
        model: nn.Module = tiny.Classifier().double().train()
        images = torch.randn(4, 3, 7, 7, dtype=torch.float64)
        run = lambda: F.cross_entropy(model(images), torch.tensor([0, 4, 2, 2]))  # noqa: E731
    else:
        dropout = {"dropout_rate": 0.2} if kind.startswith("t5") else {"attention_dropout": 0.2}
        if kind in ("gpt2", "lora"):
            dropout = {
                "resid_pdrop": 0.2,
                "attn_pdrop": 0.2,
                "embd_pdrop": 0.2,
                **({"drop": 0.3} if kind == "lora" else {}),
            }
        model = tiny.LANGUAGE_MODELS[kind](**dropout).train()
        batch = tiny.batch(kind, rows=4)
        run = lambda: tiny.losses(model, batch).mean()  # noqa: E731
    with GradientCapture(model) as capture, capture.recording(4) as recording:
        run().backward()
        found = recording.gradients()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert set(capture.coverage.covered) == trained.keys()
    for name, grad in trained.items():
        if grad is None or not grad.any():
            assert name not in found.parts or not found.total(name).any()
            continue
        torch.testing.assert_close(found.total(name), grad, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("kind", tiny.LANGUAGE_MODELS)
def test_padding_has_no_effect(kind: str) -> None:
    model = tiny.LANGUAGE_MODELS[kind]().eval()
    batch = tiny.batch(kind, rows=4)
    ignored = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    padded = {name: F.pad(rows, (0, 3), value=ignored[name]) for name, rows in batch.items()}
    short = _recorded(model, 4, lambda: tiny.losses(model, batch))
    long = _recorded(model, 4, lambda: tiny.losses(model, padded))
    queries = QueryGradients(_recorded(model, 4, lambda: tiny.losses(model, batch)))
    names = list(short.parts)
    found, expected = inner_products(long, queries, names), inner_products(short, queries, names)
    # Llama's norm and T5's variance are taken in float32
    assert oracle.relative_error(found, expected) < (1e-9 if kind in ("gpt2", "lora") else 1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("side", [None, 3])
@pytest.mark.parametrize("kind", ["t5", "gpt2", "llama"])
def test_activation_checkpointing(kind: str, side: int | None, reentrant: bool) -> None:
    """Layers run twice, and count once."""
    batch = tiny.batch(kind, rows=4)
    plain, saving = tiny.LANGUAGE_MODELS[kind](), tiny.LANGUAGE_MODELS[kind]()
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    saving.enable_input_require_grads()
    if kind == "t5" and reentrant:
        message = r"relative_attention_bias.*set use_reentrant=False"
        with (
            GradientCapture(saving) as capture,
            capture.recording(4),
            pytest.raises(UnreadableError, match=message),
        ):
            tiny.losses(saving.train(), batch).mean().backward()
        return
    found = []
    for model in (plain, saving):
        model.train()
        projection = None if side is None else Projection(side)
        with GradientCapture(model, projection=projection) as capture, capture.recording(4) as recording:
            tiny.losses(model, batch).mean().backward()
            found.append(recording.gradients())
    assert found[0].parts.keys() == found[1].parts.keys()
    for name in found[0].parts:
        torch.testing.assert_close(found[0].dense(name), found[1].dense(name), rtol=1e-9, atol=1e-12, msg=name)
    if side is None:
        for name, parameter in saving.named_parameters():
            torch.testing.assert_close(found[1].total(name), parameter.grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_compiled_with_hooks_before_the_first_call(kind: str) -> None:
    torch._dynamo.reset()
    model = tiny.MODELS[kind]().eval()
    batch = tiny.batch(kind, rows=4)
    expected = oracle.gradients(model, lambda: tiny.losses(model, batch))
    compiled = copy.deepcopy(model)
    with GradientCapture(compiled) as capture:
        compiled.compile(backend="aot_eager")
        with capture.recording(4) as recording:
            recording.backward(tiny.losses(compiled, batch))
    _assert_equal(recording.gradients(), expected)


def test_compiled_and_called_before_is_an_error() -> None:
    torch._dynamo.reset()
    model = torch.compile(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), backend="aot_eager")
    inputs = torch.randn(4, 3)
    model(inputs)
    with GradientCapture(model) as capture, capture.recording(4) as recording:
        losses = model(inputs).squeeze(1)
        with pytest.raises(ValueError, match=r"none of the covered layers was recorded.*before its first call"):
            recording.backward(losses)


@pytest.mark.parametrize("side", [None, 3])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_autocast_in_bfloat16_accumulates_in_float32(kind: str, side: int | None) -> None:
    """Against autograd of the same half-precision pass, which rounds each weight gradient to 8 bits: within 2%."""
    model = tiny.LANGUAGE_MODELS[kind](torch.float32).eval()
    examples, queries = tiny.batch(kind, 4), tiny.batch(kind, 3, seed=1)
    projection = None if side is None else Projection(side)

    def losses(batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return tiny.losses(model, batch)

    def half(batch: dict[str, Tensor]) -> PerExampleGradients:
        with (
            GradientCapture(model, projection=projection) as capture,
            capture.recording(len(batch["labels"])) as recording,
        ):
            recording.backward(losses(batch))
        return recording.gradients()

    def expected(batch: dict[str, Tensor]) -> Tensor:
        rows = oracle.gradients(model, lambda: losses(batch))
        if projection is not None:
            rows = [{n: projection.project(n, grad[None])[0] for n, grad in row.items()} for row in rows]
        return oracle.matrix(rows)

    found = half(examples)
    products = inner_products(found, QueryGradients(half(queries)), list(found.parts))
    assert products.dtype == torch.float32
    assert oracle.relative_error(products, expected(examples) @ expected(queries).T) < 0.02
    assert all(found.total(name).dtype == torch.float32 for name in found.parts)


def test_a_model_in_bfloat16() -> None:
    model = tiny.gpt2(torch.float32).eval()
    half = copy.deepcopy(model).bfloat16()
    batch = tiny.batch("gpt2", 4)
    found = _recorded(half, 4, lambda: tiny.losses(half, batch).float())
    rows = oracle.matrix(oracle.gradients(model, lambda: tiny.losses(model, batch)))
    products = inner_products(found, QueryGradients(found), list(found.parts))
    assert products.dtype == torch.float32
    assert oracle.relative_error(products, rows @ rows.T) < 0.05


def test_query_passes_compute_no_weight_gradients() -> None:
    model = tiny.gpt2()
    seen: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda grad, name=name: seen.append(name))
    _recorded(model, 4, lambda: tiny.losses(model, tiny.batch("gpt2", 4)))
    assert seen == []
