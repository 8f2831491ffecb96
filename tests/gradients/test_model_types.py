"""Model types of Transformers that have every structure between them: products equal autograd, or a named refusal.

Their configs are those of ``benchmarks/model_types.py``, which sweeps over all types.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ftrace.gradients import (
    Examples,
    GradientCapture,
    LayoutBook,
    PerExampleGradients,
    QueryGradients,
    Rehearsal,
    UnreadableError,
    inner_products,
)
from helpers import oracle
from helpers.rehearsal_step import Step

FILE = Path(__file__).parents[2] / "benchmarks" / "small_models.py"
EXACT = {
    "gpt2": "learned positions by ids of one row; tied weights",
    "bert": "learned positions and token types by slices of a buffer",
    "opt-projected": "positions with an offset, counted by the mask; embeddings of a width of their own",
    "ctrl": "sinusoids",
    "llama": "rotary positions",
    "cohere": "attention and feed-forward layer side by side",
    "falcon-alibi": "attention biased by distance; a linear layer of a class of its own",
    "gemma3_text": "norms around each part, scaled by 1 + weight",
    "t5-gated": "relative positions, one table a stack",
    "encoder-decoder": "two models with cross-attention",
    "deepseek_v3": "latent attention; experts in groups",
    "mixtral": "experts as one module, on flattened tokens",
    "gpt_oss": "sinks of attention; experts with biases",
    "rwkv": "a recurrence",
    "recurrent_gemma": "gates by blocks of weights",
    "xlstm": "cells with several gates",
    "bart": "learned positions by ids of one row, with an offset, that only a fallback knows",
    "blenderbot": "learned positions by a vector of ids",
    "prophetnet": "a table's weight read without a look-up; a second look-up beside forward",
    "mvp-prompt": "whole layers on prompts that have no batch axis",
    "umt5": "relative positions, a table a layer",
    "longt5-global": "relative positions within blocks",
    "led": "layers whose leading axis is time",
    "gpt_neox_japanese": "an attention layer that returns its bias",
    "gemma3n_text": "weights used by another method than forward, or clamped",
    "switch_transformers": "experts as layers, each on the rows that it is given",
    "dbrx": "an expert that is given slices of its own weights",
    "llama4_text": "experts that all get all tokens, one expert's after another's",
    "jetmoe": "experts of attention, on sorted rows; a bias used by another method than forward",
    "mamba": "weights of a convolution and a projection read outside of them",
    "qwen3_next": "gated linear attention after such a convolution",
    "zamba": "one attention layer at several depths, and such convolutions",
}
SINGLE = ("prophetnet", "led")  # which give NaN in double precision
REFUSED = {
    "doge-experts": r"'model.layers.0.mlp' \(DogeCDMoE\), .* the examples of the batch can't be told apart"
}  # its routing mixes them


def dtype_of(name: str) -> torch.dtype:
    return torch.float32 if name in SINGLE else torch.float64


def tolerance(name: str) -> float:
    """Norms and softmax are taken in float32 by many."""
    return 1e-4 if name in SINGLE else 1e-7


@pytest.fixture(scope="module")
def small_models() -> Any:
    spec = importlib.util.spec_from_file_location("small_models", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def products_by_autograd(small_models: Any, name: str, **settings: Any) -> Tensor:
    """Of each example's share of a mean loss with each query, in the modes that training has."""
    model = small_models.build(name, dtype_of(name), **settings)
    examples, queries = (small_models.random_batch(model, rows, seed) for seed, rows in enumerate((4, 3)))
    model.train()
    of_examples = oracle.gradients(model, lambda: small_models.token_losses(model, examples) / 4)
    model.eval()
    of_queries = oracle.gradients(model, lambda: small_models.token_losses(model, queries))
    return oracle.matrix(of_examples) @ oracle.matrix(of_queries).T


def products_by_hooks(small_models: Any, name: str, **settings: Any) -> Tensor:
    """The same; the gradients that training gets must be what they are without hooks."""
    model = small_models.build(name, dtype_of(name), **settings)
    examples, queries = (small_models.random_batch(model, rows, seed) for seed, rows in enumerate((4, 3)))
    model.train()
    small_models.token_losses(model, examples).mean().backward()
    without_hooks = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    step = Step(lambda batch: [small_models.token_losses(model, batch).mean()], examples)
    with GradientCapture(model, strict=True) as capture:
        of_queries, book = read_queries_and_rehearse(capture, lambda: small_models.token_losses(model, queries), step)
        model.train()
        recording = capture.start(4, book=book)
        loss = small_models.token_losses(model, examples).mean()
        recording.prepare([loss.grad_fn])
        loss.backward()
        of_examples = recording.gradients()
    for parameter, grad in zip(model.parameters(), without_hooks, strict=True):
        assert parameter.grad is grad is None or torch.equal(parameter.grad, grad)
    return inner_products(of_examples, QueryGradients(of_queries), capture.coverage.covered)


def read_queries_and_rehearse(
    capture: GradientCapture, losses: Callable[[], Tensor], step: Step
) -> tuple[PerExampleGradients, LayoutBook]:
    """Find out whose rows are whose; what can't be read off its layers is read off modules further out."""
    book = LayoutBook()
    while True:
        try:
            capture.module.train()
            rehearsal = Rehearsal(capture, step, Examples(4), book)
            rehearsal.find_rows()
            read, totals = rehearsal.read(unprojected=True)
            elsewhere = [name for name in read.parts if not _is_whole(read.total(name), totals.get(name))]
            if elsewhere:
                raise UnreadableError("used outside of their layers", elsewhere)
            capture.module.eval()
            with capture.recording(3) as recording:
                recording.backward(losses())
            return recording.gradients(), book
        except UnreadableError as error:
            moved = capture.widen(error.names, {key.path for key in book.verified})
            if not error.names or not moved.keys() >= set(error.names):
                raise


def _is_whole(read: Tensor, total: Tensor | None) -> bool:
    """Whether all of a parameter's gradient was read, in a model that computes some of it in float32."""
    allowed = 1e-4 * read.abs().max() + 1e-7
    return bool((read - (0 if total is None else total)).abs().max() <= allowed)


@pytest.mark.parametrize("name", EXACT)
def test_products_equal_autograd(small_models: Any, name: str) -> None:
    expected = products_by_autograd(small_models, name)
    assert oracle.relative_error(products_by_hooks(small_models, name), expected) < tolerance(name)


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_with_the_cache_that_is_on_by_default(small_models: Any, name: str) -> None:
    expected = products_by_autograd(small_models, name, use_cache=True)
    assert oracle.relative_error(products_by_hooks(small_models, name, use_cache=True), expected) < 1e-7


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(small_models: Any, name: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[name]):
        products_by_hooks(small_models, name)
