"""Traces of prompts under noise that is given, and their comparison with one forward for every cell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ftrace.causal import CausalSettings, CausalTracer
from ftrace.data import FactPrompt, TokenizedPrompt
from helpers.per_cell import PerCell


class GivenNoise:
    """A corruption with noise that the test knows."""

    def __init__(self, embedding: torch.nn.Module, noise: Tensor) -> None:
        self.embedding, self.noise = embedding, noise

    def draw(self, name: str, subject: tuple[int, ...]) -> Tensor:
        return self.embedding(torch.tensor([subject])).detach() + self.noise


def tokenized(given: dict[str, Any]) -> TokenizedPrompt:
    decoder = tuple(given["decoder_ids"] or ())
    return TokenizedPrompt(
        FactPrompt("one", "a b c d e f", "b c", ("x",)), tuple(given["input_ids"]), tuple("abcdef"), given["subject"],
        decoder, tuple(map(str, decoder)), tuple(given["answers"]), None if given["foil"] is None else (given["foil"],),
    )  # fmt: skip


def traced(model: Any, given: dict[str, Any], **settings: Any) -> Any:
    tracer = CausalTracer(model, CausalSettings(**{"only_correct": False, **settings}))
    return tracer.trace(tokenized(given), GivenNoise(tracer.embedding, given["noise"]))


def assert_equal(trace: Any, oracle: PerCell, stack: str, window: int) -> None:
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(torch.from_numpy(trace.clean), oracle.clean(), **close)
    torch.testing.assert_close(torch.from_numpy(trace.corrupted), oracle.corrupted().mean(0), **close)
    found = trace.stacks[stack]
    for mediator, grid in found.restored.items():
        samples = oracle.samples(mediator, window)
        torch.testing.assert_close(torch.from_numpy(grid), samples.mean(0), **close)
        torch.testing.assert_close(torch.from_numpy(found.spread[mediator]), samples.std(0), **close)
