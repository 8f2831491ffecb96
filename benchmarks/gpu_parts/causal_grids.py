"""Causal tracing on a GPU: its grids beside those of the CPU, and grids per second beside a forward pass per cell."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from causal import MEDIATORS, SUBJECT, work_of
from checked_lines import Line
from random_gpt2 import seconds_of
from transformers import GPT2Config, GPT2LMHeadModel

from ftrace.causal import CausalSettings, CausalTracer, Corruption, NoiseSettings
from ftrace.data import FactPrompt, TokenizedPrompt
from gpu_parts.findings import Finding, LeftOutError
from gpu_parts.running import Given
from gpu_parts.small_runs import make_model

BOUNDS = {torch.float64: {"gpt2": 1e-9}, torch.float32: {}}
FLOAT32 = 1e-3  # of the grid's range; of Llama and T5 in float64 as well, since some of them is computed in float32
REPEATS = 5


def of_grids(kind: str, device: str) -> Iterator[Line]:
    """Compare grids on the device with those of the CPU, of all mediators and stacks."""
    if kind == "lora":
        raise LeftOutError("causal tracing has no layout for adapters")
    for dtype, bounds in BOUNDS.items():
        expected, found = small_grids(kind, "cpu", dtype), small_grids(kind, device, dtype)
        errors = [np.abs(found[key] - grid).max() / np.ptp(grid) for key, grid in expected.items()]
        error, bound = float(max(errors)), bounds.get(kind, FLOAT32)
        name = f"{kind}: {len(errors)} causal grids, {str(dtype).removeprefix('torch.')}"
        yield Line(name, f"{error:.1e}", f"{bound:.0e}", error <= bound)


@cache
def small_grids(kind: str, device: str, dtype: torch.dtype) -> dict[tuple[str, str], np.ndarray]:
    """Trace a prompt of eight tokens; probabilities by stack and mediator, ``[L, T]``."""
    model: Any = make_model(kind)
    torch.manual_seed(1)
    for parameter in model.parameters():  # so that every cell has an effect of its own
        parameter.data += 0.2 * torch.randn_like(parameter)
    model = model.to(device, dtype).eval()
    tracer = CausalTracer(model, CausalSettings(only_correct=False, window=1))
    ids, decoder = tuple(range(3, 11)), (0, 20, 4) if model.config.is_encoder_decoder else ()
    fact = FactPrompt("one", "a b c d e f g h", "b c", ("x",))
    prompt = TokenizedPrompt(
        fact, ids, tuple("abcdefgh"), (1, 3), decoder, tuple(map(str, decoder)), ((5,), (9,)), (11,)
    )
    trace = tracer.trace(prompt, Corruption(NoiseSettings(samples=3), tracer.embedding, [ids[1:3]]))
    return {
        (stack, mediator): grid[0]
        for stack, of_stack in trace.stacks.items()
        for mediator, grid in of_stack.restored.items()
    }


def causal(given: Given) -> Iterator[Finding]:
    """Trace a prompt of GPT-2's shape, by rows that grow, and by a forward pass for each cell."""
    layers, tokens, samples = (2, 4, 2) if given.tiny else (12, 9, 10)
    sizes = {"n_embd": 48, "vocab_size": 101} if given.tiny else {}
    torch.manual_seed(0)
    with torch.device(given.device):
        model = GPT2LMHeadModel(GPT2Config(n_layer=layers, **sizes)).eval()
        ids = torch.randint(model.config.vocab_size, (tokens,))
        noise = torch.randn(samples, SUBJECT[1] - SUBJECT[0], model.config.n_embd) * 0.06
    reference, plain = None, 0.0
    for name, max_tokens in (
        ("a forward per cell", 1024), ("growing rows", 1024), ("growing rows", 8192), ("growing rows, suffix", 8192),
        ("floor of growing rows", 8192),
    ):  # fmt: skip
        work = work_of(name, model, ids, noise, max_tokens)
        found = work()
        seconds = seconds_of(work, given.device, 1 if given.tiny else REPEATS)
        plain = plain or seconds
        figures = {"ms": 1e3 * seconds, "grids/s": len(MEDIATORS) / seconds}
        figures["times a forward per cell"] = plain / seconds
        right = None
        if found is not None:
            found = found.double().cpu()
            reference = found if reference is None else reference
            figures["largest relative difference"] = float((found / reference - 1).abs().max())
            right = figures["largest relative difference"] < FLOAT32
        yield Finding(f"{name}, {max_tokens} tokens at once", figures, right)
