"""Rows that grow inside one forward pass give what one forward for every cell gives."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from ftrace.causal import MEDIATORS, CausalSettings, CausalTracer, Corruption, NoiseSettings
from ftrace.causal import memory as memory_of_passes
from helpers import published_tracing
from helpers.per_cell import PerCell
from helpers.traceable_models import FAMILIES, prompt
from helpers.tracing import GivenNoise, assert_equal, tokenized, traced

CASES = [
    (family, stack, attention)
    for family, about in FAMILIES.items()
    for stack in about.stacks
    for attention in about.attentions
]
ANSWERS = {"one token": ((5,),), "several answers": ((5,), (9,)), "several tokens": ((5, 7), (9,), (5, 3))}


@pytest.mark.parametrize(("family", "stack", "attention"), CASES)
def test_grids_equal_one_forward_per_cell(family: str, stack: str, attention: str) -> None:
    model = FAMILIES[family].build(attn_implementation=attention)
    given = prompt(model, stack, answers=ANSWERS["one token"])
    oracle = PerCell(model, FAMILIES[family].stacks[stack], **given)
    trace = traced(model, given, window=2)
    crosses = stack == "decoder" and model.config.is_encoder_decoder
    assert list(trace.stacks[stack].restored) == [one for one in MEDIATORS if crosses or "cross" not in one]
    assert_equal(trace, oracle, stack, 2)


@pytest.mark.parametrize("window", [1, 3, 20])
@pytest.mark.parametrize(("family", "stack"), [("gpt2", "decoder"), ("t5", "encoder"), ("t5", "decoder")])
def test_windows(family: str, stack: str, window: int) -> None:
    model = FAMILIES[family].build()
    given = prompt(model, stack, answers=ANSWERS["one token"])
    windows = ["mlp", "attention", *(["cross_attention"] if stack == "decoder" and family == "t5" else [])]
    trace = traced(model, given, window=window, mediators=tuple(windows), stacks=(stack,))
    assert_equal(trace, PerCell(model, FAMILIES[family].stacks[stack], **given), stack, window)


@pytest.mark.parametrize("answers", ["several answers", "several tokens"])
@pytest.mark.parametrize(
    ("family", "stack"), [("gpt2", "decoder"), ("llama", "decoder"), ("t5 gated", "encoder"), ("t5", "decoder")]
)
@pytest.mark.parametrize("suffix", [False, True])
def test_answers(family: str, stack: str, answers: str, suffix: bool) -> None:
    model = FAMILIES[family].build()
    given = prompt(model, stack, answers=ANSWERS[answers])
    mediators = ("hidden", "attention_severed", "mlp")
    trace = traced(model, given, window=2, mediators=mediators, suffix=suffix)
    assert_equal(trace, PerCell(model, FAMILIES[family].stacks[stack], **given), stack, 2)


@pytest.mark.parametrize("max_tokens", [40, 10_000])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gemma2", "neox"])
def test_what_stands_before_may_come_from_a_cache(family: str, max_tokens: int) -> None:
    model = FAMILIES[family].build()
    given = prompt(model, samples=3, answers=ANSWERS["one token"])
    trace = traced(model, given, window=3, suffix=True, max_tokens=max_tokens)
    assert_equal(trace, PerCell(model, FAMILIES[family].stacks["decoder"], **given), "decoder", 3)


@pytest.mark.parametrize("max_tokens", [1, 150])
@pytest.mark.parametrize(("family", "stack"), [("gpt2", "decoder"), ("t5", "encoder"), ("t5", "decoder")])
def test_passes_may_have_any_size(family: str, stack: str, max_tokens: int) -> None:
    model = FAMILIES[family].build()
    given = prompt(model, stack, samples=3, answers=ANSWERS["several answers"])
    whole, split = (traced(model, given, window=2, max_tokens=size) for size in (100_000, max_tokens))
    for mediator, grid in whole.stacks[stack].restored.items():
        torch.testing.assert_close(split.stacks[stack].restored[mediator], grid, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("suffix", [False, True])
def test_where_memory_runs_out_passes_become_smaller(suffix: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["gpt2"].build()
    given = prompt(model, samples=3, answers=ANSWERS["one token"])
    expected = traced(model, given, suffix=suffix)
    most, seen = (100 if suffix else 300), []
    forward = model.transformer.h[2].mlp.forward

    def little_memory(states: Tensor) -> Tensor:
        seen.append(states.shape[0] * states.shape[1])
        if seen[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(states)

    monkeypatch.setattr(model.transformer.h[2].mlp, "forward", little_memory)
    found = traced(model, given, suffix=suffix)
    assert max(seen) > most >= seen[-1]
    for mediator, grid in expected.stacks["decoder"].restored.items():
        torch.testing.assert_close(found.stacks["decoder"].restored[mediator], grid, rtol=1e-9, atol=1e-11)
    tracer = CausalTracer(model, CausalSettings(only_correct=False, suffix=suffix))
    most = 5
    with pytest.raises(MemoryError, match="more memory than there is"):
        tracer.trace(tokenized(given), GivenNoise(tracer.embedding, given["noise"]))


def test_a_limit_is_half_of_what_was_tried_and_at_least_one_token() -> None:
    def fails() -> None:
        raise MemoryError

    limit = memory_of_passes.MemoryLimit(100)
    for tried, left in ((10, 5), (50, 2), (1, 1), (1, 1)):
        assert limit.attempt(fails, tried) is None
        assert limit.tokens == left
    assert limit.attempt(lambda: "done", 7) == "done"
    with pytest.raises(ValueError, match="max_tokens: expected at least 1 token in a pass, found 0"):
        memory_of_passes.MemoryLimit(0)


def test_errors_that_are_not_of_memory_are_not_swallowed() -> None:
    assert memory_of_passes.is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        memory_of_passes.MemoryLimit(10).attempt(_mismatch, 10)


def _mismatch() -> None:
    raise RuntimeError("size mismatch")


@pytest.mark.parametrize("kind", [None, "mlp", "attn"])
def test_the_published_definition(kind: str | None) -> None:
    model = FAMILIES["gpt2"].build()
    subjects = [[4, 5, 6], [7], [8, 9]]
    given = prompt(model, answers=ANSWERS["one token"])
    scale = published_tracing.noise_scale(model, subjects)
    draws = published_tracing.noise(scale, 2, 12, samples=4, seed=1)
    expected = published_tracing.trace(model, given["input_ids"], given["subject"], draws, kind, window=3)
    mediator = {None: "hidden", "mlp": "mlp", "attn": "attention"}[kind]
    tracer = CausalTracer(model, CausalSettings(mediators=(mediator,), window=3, answer="first"))
    noise = NoiseSettings("gaussian", scale=3.0, samples=4, seed=1, draws="published")
    corruption = Corruption(noise, tracer.embedding, subjects)
    assert corruption.sigma * 3 == pytest.approx(float(scale), rel=1e-12)
    asked = {**given, "answers": ((expected.prediction,),), "foil": (expected.prediction + 1) % 20}
    trace = tracer.trace(tokenized(asked), corruption)
    assert (trace.status, trace.rank) == ("traced", 1)
    assert trace.clean[0] == pytest.approx(float(expected.clean), rel=1e-9)
    assert trace.corrupted[0] == pytest.approx(float(expected.corrupted), rel=1e-9)
    found = torch.from_numpy(trace.stacks["decoder"].restored[mediator][0])
    torch.testing.assert_close(found, expected.restored.double(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_model_is_left_as_it_was(family: str) -> None:
    model = FAMILIES[family].build()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    state = torch.get_rng_state()
    traced(model, prompt(model, answers=ANSWERS["one token"]))
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_model_that_gives_nan_is_not_taken_to_be_right() -> None:
    model = FAMILIES["gpt2"].build()
    given = prompt(model, answers=ANSWERS["one token"])
    tracer = CausalTracer(model, CausalSettings())
    model.transformer.ln_f.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"the model gives NaN for the prompt\. Take other weights, or a larger dtype"):
        tracer.trace(tokenized(given), GivenNoise(tracer.embedding, given["noise"]))


def test_wrong_answers_are_left_out_with_their_rank() -> None:
    model = FAMILIES["gpt2"].build()
    given = prompt(model, answers=ANSWERS["one token"])
    trace = traced(model, given, only_correct=True)
    logits = model(torch.tensor([given["input_ids"]])).logits[0, -1]
    rank = int((logits > logits[5]).sum()) + 1
    assert rank > 1
    assert (trace.status, trace.rank, trace.reason) == ("wrong", rank, f"the model gives the answer rank {rank}")
    assert not trace.stacks


@pytest.mark.parametrize("suffix", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_passed_that_transformers_will_remove(family: str, suffix: bool) -> None:
    model = FAMILIES[family].build()
    given = prompt(model, next(iter(FAMILIES[family].stacks)), answers=((5,),))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        traced(model, given, window=2, suffix=suffix)


class BeforeItWasRenamed(LlamaForCausalLM):
    """Takes a cache by the name that it had in earlier versions of transformers."""

    def forward(self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool | None = None) -> Any:
        return super().forward(input_ids, cache=past_key_values, use_cache=use_cache)


def test_a_cache_is_passed_by_the_name_that_a_model_gives_it() -> None:
    model = FAMILIES["llama"].build()
    given = prompt(model, "decoder", answers=((5,),))
    expected = traced(model, given, window=2, suffix=True)
    model.__class__ = BeforeItWasRenamed
    trace = traced(model, given, window=2, suffix=True)
    for mediator, grid in expected.stacks["decoder"].restored.items():
        np.testing.assert_allclose(trace.stacks["decoder"].restored[mediator], grid, rtol=1e-9, atol=1e-12)
