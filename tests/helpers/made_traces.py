"""Traces of prompts made up at random, for tests of what is stored, averaged and drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ftrace.causal.prompt_trace import OUTCOMES, PromptTrace, Stack, StackTrace


def made_trace(
    name: str = "prompt",
    num_layers: int = 3,
    tokens: Sequence[str] = ("The", " Space", " Needle", " is", " in"),
    subject: tuple[int, int] = (1, 3),
    mediators: Sequence[str] = ("hidden", "attention_severed", "mlp"),
    seed: int = 0,
    fact: str | None = None,
    decoder_tokens: Sequence[str] = (),
) -> PromptTrace:
    """A traced prompt: of a decoder-only model, or of an encoder-decoder where it has tokens of the decoder."""
    generator = np.random.default_rng(seed)
    stacks: dict[Stack, StackTrace] = {}
    readers: list[tuple[Stack, Sequence[str], tuple[int, int]]] = [("decoder", tokens, subject)]
    if decoder_tokens:
        readers = [("encoder", tokens, subject), ("decoder", decoder_tokens, (0, 0))]
    for stack, own, place in readers:
        shape = (len(OUTCOMES), num_layers, len(own))
        restored = {mediator: generator.normal(0.3, 0.4, shape) for mediator in mediators}
        spread = {mediator: generator.random(shape) for mediator in mediators}
        stacks[stack] = StackTrace(tuple(own), place, restored, spread)
    return PromptTrace(
        name, "traced", "", "".join(tokens), "".join(tokens[slice(*subject)]), ("Seattle", "the city"), fact=fact,
        rank=1, clean=generator.random(3), corrupted=generator.random(3) / 10, stacks=stacks,
    )  # fmt: skip


def made_traces(number: int = 12, num_layers: int = 3, *, encoder: bool = False) -> list[PromptTrace]:
    """Prompts whose subjects differ in place and length, two of each fact; the last two are of no known fact."""
    generator = np.random.default_rng(5)
    found = []
    for seed in range(number):
        start, length = int(generator.integers(0, 3)), int(generator.integers(1, 5))
        tokens = [f" t{place}" for place in range(start + length + int(generator.integers(1, 5)))]
        fact = f"fact {seed // 2}" if seed < number - 2 else None
        subject = (start, start + length)
        given = ["<pad>", "<mask>"] if encoder else []
        found.append(
            made_trace(f"prompt_{seed}", num_layers, tokens, subject, seed=seed, fact=fact, decoder_tokens=given)
        )
    return found


def left_out(name: str = "left_out", status: str = "wrong") -> PromptTrace:
    """A prompt that was not traced."""
    return PromptTrace(name, status, "rank 7", "A is in", "A", ("B",), query_id=4, rank=7)  # type: ignore[arg-type]
